"""The teacher's features on disk: what is kept, what is refused, what is never mixed up."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import fill_run as filling
import pytest
import torch

from kdedge.config.optim_spec import OptimSettings
from kdedge.data.images import Images
from kdedge.loading.decoding import Preparation
from kdedge.loading.loader import training_batches
from kdedge.loading.views import Augmentation
from kdedge.runtime.preprocess import Preprocess
from kdedge.tensor_file import read_tensors, write_tensors
from kdedge.training.output_store.fill import StoreFiller
from kdedge.training.output_store.store import n_crops

MAPS = Path("/proc/self/maps")


def test_every_image_of_a_training_batch_has_the_features_of_its_own_crop(tmp_path: Path) -> None:
    filler = filling.make_filler(tmp_path)
    filler.fill()
    batches = training_batches(
        Images(filler.source, tuple(filler.store.indices.tolist())),
        Preparation(filling.PREPROCESS, Augmentation(1, 0.5, flip=True)),
        OptimSettings(epochs=4, batch_size=64, n_workers=0),
        seed=5,
        epoch=4,
        n_views=2,
        teacher_features=filler.store.read,
    )
    for batch in batches:
        expected = filling.SlowTeacher().teacher_features(batch.images, filling.PREPROCESS)
        assert batch.teacher_features.dtype == torch.float32
        assert torch.equal(expected.half().float(), batch.teacher_features)


def test_features_are_two_bytes_a_value_and_mapped_from_their_files(tmp_path: Path) -> None:
    store, _ = filling.fill(tmp_path)
    assert store.n_bytes == 290 * 2 * 24 * 2
    assert store.size == "290 images x 2 views x 24 dimensions x 2 bytes = 27.8 kB"
    files = filling.files_of(store)
    assert [name[:9] for name in sorted(files)] == ["view-0001"] * 3 + ["view-0002"] * 3
    hashes_and_positions = 290 * 2 * 40
    assert 0 < sum(map(len, files.values())) - store.n_bytes - hashes_and_positions < 6 * 1000
    if MAPS.exists():
        assert all(str(file) in MAPS.read_text() for file, _ in store.mapped)


def test_autocast_changes_no_features(tmp_path: Path) -> None:
    store, _ = filling.fill(tmp_path)
    expected = filling.features_of(store)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(filling.features_of(store), expected)


def test_more_files_than_the_kernel_maps_are_read_into_memory(tmp_path: Path) -> None:
    first = filling.fill(tmp_path)[0]
    expected = filling.features_of(first)
    store = filling.make_filler(tmp_path).store
    store.mapped += [(tmp_path, torch.empty(0))] * 59_998
    n_before = MAPS.read_text().count(str(tmp_path)) if MAPS.exists() else 0
    assert store.load() == []
    assert torch.equal(filling.features_of(store), expected)
    if MAPS.exists():
        assert MAPS.read_text().count(str(tmp_path)) == n_before + 2
        assert len(first.mapped) == len(store.mapped) - 59_998 > 2  # the first store has them, too


@pytest.mark.parametrize(
    ("n_images", "images_a_file"), [(128_000, 128), (128_001, 160), (1_281_167, 1312)]
)
def test_a_file_has_few_images_and_a_view_has_few_files(
    tmp_path: Path, n_images: int, images_a_file: int
) -> None:
    digests = dict.fromkeys(range(n_images), "0" * 64)
    chunks = filling.make_filler(tmp_path, digests=digests, n_views=1).store.load()
    assert len(chunks[0].positions) == images_a_file
    assert len(chunks) <= 1001
    assert n_crops(chunks) == n_images


@pytest.mark.parametrize(
    "change",
    [
        {"features_hash": "another"},
        {"precision": "bf16"},
        {"preprocess": Preprocess(8, (0.5,) * 3, (0.5,) * 3, resize_mode="squash")},
        {"augment": Augmentation(2, 0.5, flip=True)},
        {"augment": Augmentation(1, 0.4, flip=True)},
        {"augment": Augmentation(1, 0.5, flip=False)},
        {"augment": Augmentation(1, 0.5, flip=True, strong=True)},
    ],
)
def test_another_teacher_format_or_crop_is_another_store(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    one, other = (filling.make_filler(tmp_path, **c).store for c in ({}, change))
    assert one.key != other.key
    assert one.path != other.path


def test_images_named_in_any_order_have_their_own_features(tmp_path: Path) -> None:
    digests = {i: filling.digest(i) for i in (7, 2, 5)}
    store = filling.make_filler(tmp_path, digests=digests, n_views=1).store
    store.create()
    (chunk,) = store.load()
    assert chunk.positions.tolist() == [2, 5, 7]
    store.write(chunk, torch.tensor([[2.0], [5.0], [7.0]], dtype=torch.float16))
    assert store.load() == []
    assert store.read([5, 7, 2], 1).flatten().tolist() == [5, 7, 2]


def test_a_store_is_used_again_and_grows_by_the_views_it_lacks(tmp_path: Path) -> None:
    filling.fill(tmp_path, n_views=1)
    filler = filling.make_filler(tmp_path, n_views=3)
    assert {chunk.view for chunk in filler.store.load()} == {2, 3}
    filler.fill()
    assert filling.make_filler(tmp_path, n_views=2).store.load() == []


@pytest.mark.parametrize("n_before", [1, 128, 200, 289])
def test_only_added_images_are_computed_and_all_features_are_those_of_a_fresh_store(
    tmp_path: Path, n_before: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    filling.fill(tmp_path / "grown", n_images=n_before)
    grown, teacher = filling.fill(tmp_path / "grown")
    assert teacher.n_computed == 2 * (290 - n_before)  # two views
    assert f"Computing {2 * (290 - n_before)} of 580 crops." in caplog.text
    alone, _ = filling.fill(tmp_path / "alone")
    assert torch.equal(filling.features_of(grown), filling.features_of(alone))


def test_recipes_share_the_images_that_they_have_in_common(tmp_path: Path) -> None:
    for part in (range(100), range(90, 290)):
        digests = {i: filling.digest(i) for i in part}
        filling.fill(tmp_path, digests=digests, n_views=1)
    both, teacher = filling.fill(tmp_path)
    assert teacher.n_computed == 290  # the second view
    alone, _ = filling.fill(tmp_path / "alone")
    assert torch.equal(filling.features_of(both), filling.features_of(alone))


def test_an_image_that_changed_or_moved_has_another_crop_and_is_computed_again(
    tmp_path: Path,
) -> None:
    filling.fill(tmp_path, n_images=60)
    digests = {i: filling.digest(i) for i in range(60)}
    _, teacher = filling.fill(tmp_path, digests={**digests, 7: "f" * 64})
    assert teacher.n_computed == 2
    moved = {0: "f" * 64, **{i + 1: digest for i, digest in digests.items()}}
    assert filling.fill(tmp_path, digests=moved)[1].n_computed == 2 * 61
    assert filling.fill(tmp_path, n_images=60)[1].n_computed == 0


def test_without_random_crops_an_image_is_found_wherever_it_moved(tmp_path: Path) -> None:
    def filled(root: Path, order: list[int]) -> StoreFiller:
        class Moved(filling.Drawn):
            def read(self, i: int) -> bytes:
                data: bytes = filling.draw(order[i])
                return data

        digests = {i: filling.digest(which) for i, which in enumerate(order)}
        filler = filling.make_filler(root, digests=digests, n_views=1, augment=None)
        filler = replace(filler, source=Moved(len(order)))
        filler.fill()
        return filler

    filled(tmp_path, [3, 1, 2])
    moved, alone = (filled(tmp_path / x, [9, 2, 3, 1, 9, 7]) for x in (".", "alone"))
    assert moved.model.n_computed == 3  # 9 twice
    assert torch.equal(filling.features_of(moved.store), filling.features_of(alone.store))


def test_files_of_other_images_are_not_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = filling.fill(tmp_path, n_images=60)
    for name, content in filling.files_of(store).items():
        (store.path / name).write_bytes(content[:-1] + b"?")
    before = filling.files_of(store)
    digests = {i: filling.digest(i) for i in range(60, 80)}
    assert filling.fill(tmp_path, digests=digests)[1].n_computed == 2 * 20
    assert before.items() <= filling.files_of(store).items()
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def of_another_store(files: list[Path]) -> bytes:
    tensors, _ = read_tensors(files[1])
    write_tensors(files[1], tensors, {"store": "x", "view": "1"})
    return files[1].read_bytes()


DAMAGES = {
    "cut off": lambda files: files[1].read_bytes()[:-100],
    "empty": lambda files: b"",
    "no tensor file": lambda files: b"x" * 5000,
    "a bit": lambda files: files[1].read_bytes()[:-1] + bytes([files[1].read_bytes()[-1] ^ 1]),
    "another view's": lambda files: files[4].read_bytes(),
    "another store's": of_another_store,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_whole_and_its_own_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store, _ = filling.fill(tmp_path)
    before = filling.files_of(store)
    files = sorted(store.path.glob("view-*/*"))
    n_images = len(read_tensors(files[1])[0]["positions"])
    files[1].write_bytes(DAMAGES[damage](files))
    _, teacher = filling.fill(tmp_path)
    assert filling.files_of(store) == before
    assert teacher.n_computed == n_images
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    start = f"Computing damaged files of the teacher store again: 1, for example {files[1]}."
    assert warned[0].startswith(start)


def test_a_worker_in_another_process_writes_what_this_one_reads(tmp_path: Path) -> None:
    filling.fill(tmp_path, n_images=60)
    here = filling.make_filler(tmp_path, n_images=200)
    chunks = here.store.load()
    there = replace(here, store=pickle.loads(pickle.dumps(here.store)))
    assert sum(there.compute(pickle.loads(pickle.dumps(chunks)))) == 2 * 140
    assert here.store.load(chunks) == []


def test_a_damaged_description_is_written_anew_and_nothing_depends_on_it(tmp_path: Path) -> None:
    store, _ = filling.fill(tmp_path, n_images=4)
    (store.path / "store.json").write_text("{")
    filling.fill(tmp_path, n_images=4, n_views=3)
    assert json.loads((store.path / "store.json").read_text())["model"] == "t"
