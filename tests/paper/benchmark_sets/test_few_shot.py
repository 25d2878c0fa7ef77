"""Shots of every benchmark set that has training images, drawn as CoOp's code draws them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kdedge.config.data_spec import SourceSpec
from kdedge.data.benchmark_sets import list_benchmark_sets
from kdedge.data.images import Images
from kdedge.setup.images import draw_shots

Make = Callable[[str], Any]
VARIANTS = {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}


def images_of(mini: Any, part: str) -> Images:
    source = mini.open(part)
    return Images(source, tuple(range(len(source.items))), (), {})


def coop_draw(images: Images, shots: int) -> list[int]:
    """What CoOp's code draws from the global stream."""
    groups: dict[int, list[int]] = {}
    for i, item in enumerate(images.source.items):
        assert item.label is not None
        groups.setdefault(item.label, []).append(i)
    drawn = []
    for group in groups.values():
        drawn += random.sample(group, shots) if len(group) >= shots else group
    return drawn


@pytest.mark.parametrize("name", sorted(set(list_benchmark_sets()) - VARIANTS))
@pytest.mark.parametrize(("shots", "seed"), [(1, 1), (2, 2), (5, 3)])
def test_training_and_then_validation_images_are_coops_draw(
    name: str, shots: int, seed: int, miniature: Make
) -> None:
    mini = miniature(name)
    own, state = random.Random(seed), random.getstate()
    random.seed(seed)
    try:
        for part, n in (("train", shots), ("val", min(shots, 4))):
            if part in mini.n_images:
                images = images_of(mini, part)
                found = draw_shots(SourceSpec(benchmark=mini.benchmark.name), images, n, own)
                assert found == coop_draw(images, n)
    finally:
        random.setstate(state)


def test_an_image_that_cannot_be_read_changes_no_other(miniature: Make) -> None:
    mini = miniature("dtd")
    images, spec = images_of(mini, "train"), SourceSpec(benchmark="small_dtd")
    whole = draw_shots(spec, images, 3, random.Random(1))
    readable = replace(images, indices=tuple(i for i in images.indices if i != whole[1]))
    assert draw_shots(spec, readable, 3, random.Random(1)) == [whole[0], *whole[2:]]
