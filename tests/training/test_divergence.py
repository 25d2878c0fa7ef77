"""What is said of numbers that are no longer finite."""

from __future__ import annotations

import pytest

from kdedge.config.optim_spec import OptimSettings
from kdedge.training.loop.step import diverged

LOWER, PLAIN, CLIP = "lower optim.lr (now 0.5)", "set optim.precision: fp32", "clip_grad_norm: 1.0"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_only_remedies_that_are_not_taken_yet_are_named(precision: str, clip: float | None) -> None:
    settings = OptimSettings(lr=0.5, precision=precision, clip_grad_norm=clip)
    text = str(diverged("The loss is nan", "step 1", ["a"], settings))
    assert LOWER in text
    assert (PLAIN in text, CLIP in text) == (precision != "fp32", clip is None)


@pytest.mark.parametrize(
    ("n_images", "images"),
    [(0, "not named."), (5, "i0, i1, i2, i3, i4."), (6, "i0, i1, i2, i3, i4, and 1 more.")],
)
def test_a_few_of_the_images_are_named(n_images: int, images: str) -> None:
    keys = [f"i{number}" for number in range(n_images)]
    first = str(diverged("The loss is inf", "step 2", keys, OptimSettings())).splitlines()[0]
    assert first == f"The loss is inf: training diverged at step 2. Images: {images}"
