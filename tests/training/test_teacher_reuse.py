"""A store of more images takes the features of those that an older one has, bit for bit."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.training.teacher_store.fill import StoreFiller

Filling = ModuleType


@pytest.mark.parametrize("n_before", [128, 200, 289])
def test_only_added_images_are_computed_and_all_features_are_those_of_a_store_without_others(
    filling: Filling, tmp_path: Path, n_before: int, caplog: pytest.LogCaptureFixture
) -> None:
    before, _ = filling.fill(tmp_path / "grown", n_images=n_before)
    caplog.set_level(logging.INFO)
    grown, teacher = filling.fill(tmp_path / "grown")
    assert teacher.n_computed == 2 * (290 - n_before)  # two views
    assert f"Features of {n_before} of 290 images are taken from {before.path}: " in caplog.text
    alone, _ = filling.fill(tmp_path / "alone")
    assert filling.files_of(grown) == filling.files_of(alone)


def test_several_stores_are_put_together_and_a_view_that_none_has_is_computed(
    filling: Filling, tmp_path: Path
) -> None:
    whole = filling.make_filler(tmp_path).store
    images = filling.Images(filling.Drawn(), tuple(range(290)), (), whole.digests)
    for part in (range(100), range(90, 290)):
        filling.fill(tmp_path, images=images.only(tuple(part)), n_views=1)
    both, teacher = filling.fill(tmp_path, n_views=2)
    assert teacher.n_computed == 290  # the second view
    alone, _ = filling.fill(tmp_path / "alone")
    assert filling.files_of(both) == filling.files_of(alone)


def test_an_image_that_moved_has_another_crop_and_is_computed_again(
    filling: Filling, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = filling.fill(tmp_path, n_images=60)[0].digests
    # One more image before the others
    digests = {0: "f" * 64, **{i + 1: digest for i, digest in own.items()}}
    images = filling.Images(filling.Drawn(61), tuple(range(61)), (), digests)
    caplog.set_level(logging.INFO)
    _, teacher = filling.fill(tmp_path, images=images, n_images=61)
    assert teacher.n_computed == 2 * 61
    assert "60 images are computed again because they moved" in caplog.text


def test_without_random_crops_an_image_is_found_wherever_it_moved(
    filling: Filling, tmp_path: Path
) -> None:
    def filler(order: list[int]) -> StoreFiller:
        class Moved(filling.Drawn):
            def read(self, i: int) -> bytes:
                data: bytes = filling.draw(order[i])
                return data

        digests = {i: f"{which:064x}" for i, which in enumerate(order)}
        images = filling.Images(Moved(len(order)), tuple(range(len(order))), (), digests)
        made = filling.make_filler(
            tmp_path, images=images, n_images=len(order), n_views=1, augment=None
        )
        return replace(made, augment=None, source=images.source)

    filler([3, 1, 2]).fill()
    moved = filler([9, 2, 3, 1, 7])
    moved.fill()
    assert moved.teacher.n_computed == 2
    for chunk in moved.store.chunks():
        moved.store.file(chunk).unlink()
    for other in tmp_path.glob("*/images.safetensors"):
        other.unlink()
    taken = filling.files_of(moved.store)
    alone = filler([9, 2, 3, 1, 7])
    alone.fill()
    assert taken == {}
    assert torch.equal(moved.store.read(range(5), 1), alone.store.read(range(5), 1))


@pytest.mark.parametrize(
    "change", [{"provenance": "another"}, {"precision": "bf16"}, {"augment": None}]
)
def test_nothing_is_taken_from_a_store_of_another_kind(
    filling: Filling, tmp_path: Path, change: dict[str, Any]
) -> None:
    filling.fill(tmp_path, n_images=60, **change)
    _, teacher = filling.fill(tmp_path, n_images=61)
    assert teacher.n_computed == 2 * 61


def _damage_features(store: Path) -> None:
    for file in store.glob("view-*/*"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    "harm",
    [
        lambda store: (store / "images.safetensors").unlink(),
        lambda store: (store / "images.safetensors").write_bytes(b"x" * 90),
        lambda store: (store / "store.json").write_text("[1"),
        lambda store: store.rename(store.with_name("0" * 16)),
        _damage_features,
    ],
    ids=["no list", "another list", "another description", "another name", "other features"],
)
def test_a_store_that_is_damaged_gives_nothing_and_stops_nothing(
    filling: Filling, tmp_path: Path, harm: Callable[[Path], Any]
) -> None:
    before, _ = filling.fill(tmp_path, n_images=60)
    harm(before.path)
    _, teacher = filling.fill(tmp_path, n_images=61)
    assert teacher.n_computed == 2 * 61


def test_a_store_of_an_older_version_gets_its_list_when_it_is_used_again(
    filling: Filling, tmp_path: Path
) -> None:
    before, _ = filling.fill(tmp_path, n_images=60)
    (before.path / "images.safetensors").unlink()
    filling.fill(tmp_path, n_images=60)
    assert filling.fill(tmp_path, n_images=61)[1].n_computed == 2


def test_a_store_that_another_command_fills_meanwhile_changes_no_feature(
    filling: Filling, tmp_path: Path
) -> None:
    other, _ = filling.fill(tmp_path / "both", n_images=200)
    missing = filling.files_of(other)
    for chunk in other.chunks():
        other.file(chunk).unlink()

    class FillsTheOther(filling.SlowTeacher):
        def forward_features(self, images: Tensor) -> Tensor:
            for name, content in missing.items():
                (other.path / name).write_bytes(content)
            return super().forward_features(images)

    filler = filling.make_filler(tmp_path / "both", teacher=FillsTheOther())
    filler.store.create()
    list(filler.compute(filler.store.chunks()))
    alone, _ = filling.fill(tmp_path / "alone")
    assert filling.files_of(filler.store) == filling.files_of(alone)


def test_a_worker_in_another_process_takes_features_too(filling: Filling, tmp_path: Path) -> None:
    filling.fill(tmp_path, n_images=60)
    here = filling.make_filler(tmp_path, n_images=61)
    here.store.create()
    store = pickle.loads(pickle.dumps(here.store))
    assert store.digests is None
    list(replace(here, store=store).compute(store.chunks()))
    assert sum(here.teacher.seen) == 2  # no trial in a worker
