"""The teacher's features on disk: what is kept, what is refused, what is never mixed up."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdedge.clip.tensor_file import write_tensors
from kdedge.data.decoding import Preparation
from kdedge.data.images import Images
from kdedge.data.loader import training_batches
from kdedge.data.views import Augmentation
from kdedge.runtime.preprocess import Preprocess
from kdedge.training.teacher_store.store import Chunk, TeacherStore

Filling = ModuleType


def test_every_image_of_a_training_batch_has_the_features_of_its_own_crop(
    filling: Filling, tmp_path: Path
) -> None:
    filler = filling.make_filler(tmp_path)
    filler.fill()
    batches = training_batches(
        Images(filler.source, filler.store.indices),
        Preparation(filler.teacher.preprocess, Augmentation(1, 0.5, flip=True)),
        seed=5,
        epochs=[4],
        batch_size=64,
        n_views=2,
        teacher_features=filler.store.read,
    )
    for batch in batches:
        expected = filling.SlowTeacher().forward_features(batch.images)
        assert batch.teacher_features.dtype == torch.float32
        assert torch.equal(expected.half().float(), batch.teacher_features)


def test_features_are_two_bytes_a_value_and_mapped_from_their_files(
    filling: Filling, tmp_path: Path
) -> None:
    store, _ = filling.fill(tmp_path)
    assert store.n_bytes == 290 * 2 * 24 * 2
    assert store.size == "290 images x 2 views x 24 dimensions x 2 bytes = 27.8 kB"
    files = filling.files_of(store)
    assert sorted(files) == [f"view-000{v}/0000{c}.safetensors" for v in (1, 2) for c in range(3)]
    assert store.n_bytes < sum(map(len, files.values())) < store.n_bytes + 6 * 1000
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert all(str(store.file(chunk)) in maps.read_text() for chunk in store.chunks())


@pytest.mark.parametrize(
    ("n_images", "images_a_file"),
    [(0, 128), (128_000, 128), (128_001, 160), (1_281_167, 1312)],
)
def test_a_file_has_few_images_and_a_view_has_few_files(
    tmp_path: Path, n_images: int, images_a_file: int
) -> None:
    store = TeacherStore(tmp_path, {}, indices=range(n_images), dim=2, n_views=1)
    assert store.chunk_images == images_a_file
    assert len(store.chunks()) <= 1001


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": "another"},
        {"precision": "bf16"},
        {"preprocess": Preprocess(8, (0.5,) * 3, (0.5,) * 3, resize_mode="squash")},
        {"augment": Augmentation(2, 0.5, flip=True)},
        {"augment": Augmentation(1, 0.4, flip=True)},
        {"augment": Augmentation(1, 0.5, flip=False)},
        {"augment": Augmentation(1, 0.5, flip=True, strong=True)},
    ],
)
def test_another_teacher_format_or_crop_is_another_store(
    filling: Filling, tmp_path: Path, change: dict[str, Any]
) -> None:
    one, other = (filling.make_filler(tmp_path, **c).store for c in ({}, change))
    assert one.key != other.key
    assert one.path != other.path


def test_images_that_were_added_removed_changed_or_moved_make_another_store(
    filling: Filling, tmp_path: Path
) -> None:
    images = filling.Images(filling.Drawn(5), (0, 1, 2), (), dict.fromkeys(range(5), "d"))
    changed = [
        images,
        images.only((0, 1, 2, 3)),
        images.only((0, 1)),
        images.only((0, 1, 4)),
        replace(images, digests={**images.digests, 1: "e"}),
    ]
    keys = {filling.make_filler(tmp_path, images=each).store.key for each in changed}
    assert len(keys) == len(changed)
    reordered = images.only((2, 0, 1))
    assert filling.make_filler(tmp_path, images=reordered).store.key in keys


def test_images_named_in_any_order_have_their_own_features(tmp_path: Path) -> None:
    store = TeacherStore(tmp_path, {}, indices=(7, 2, 5), dim=1, n_views=1)
    store.create()
    (chunk,) = store.chunks()
    features = [[float(position)] for position in store.positions(chunk)]
    store.write(chunk, torch.tensor(features, dtype=torch.float16))
    assert store.load([chunk]) == []
    assert store.read([5, 7, 2], 1).flatten().tolist() == [5, 7, 2]


def test_a_store_is_used_again_and_grows_by_the_views_it_lacks(
    filling: Filling, tmp_path: Path
) -> None:
    filling.fill(tmp_path, n_views=1)
    filler = filling.make_filler(tmp_path, n_views=3)
    assert {chunk.view for chunk in filler.store.load(filler.store.chunks())} == {2, 3}
    filler.fill()
    fewer = filling.make_filler(tmp_path, n_views=2)
    assert fewer.store.load(fewer.store.chunks()) == []


def of_another_store(store: TeacherStore, file: Path) -> bytes:
    assert store.file(Chunk(1, 1)) == file
    features = {"teacher_features": torch.zeros(128, 24, dtype=torch.float16)}
    write_tensors(file, features, {"store": "x", "view": "1", "chunk": "1"})
    return file.read_bytes()


DAMAGES = {
    "cut off": lambda store, file: file.read_bytes()[:-100],
    "empty": lambda store, file: b"",
    "no tensor file": lambda store, file: b"x" * 5000,
    "a bit": lambda store, file: file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]),
    "another view's": lambda store, file: store.file(Chunk(2, 1)).read_bytes(),
    "another chunk's": lambda store, file: store.file(Chunk(1, 0)).read_bytes(),
    "another store's": of_another_store,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_whole_and_its_own_is_computed_again(
    filling: Filling, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store, _ = filling.fill(tmp_path)
    before = filling.files_of(store)
    file = store.file(Chunk(1, 1))
    file.write_bytes(DAMAGES[damage](store, file))
    _, teacher = filling.fill(tmp_path)
    assert filling.files_of(store) == before
    assert teacher.n_passes == 16
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    start = f"Computing damaged files of the teacher store again: 1, for example {file}."
    assert warned[0].startswith(start)


def test_a_damaged_description_is_written_anew_and_nothing_depends_on_it(
    filling: Filling, tmp_path: Path
) -> None:
    store, _ = filling.fill(tmp_path, n_images=4)
    (store.path / "store.json").write_text("{")
    filling.fill(tmp_path, n_images=4, n_views=3)
    assert json.loads((store.path / "store.json").read_text())["teacher"] == "t"
