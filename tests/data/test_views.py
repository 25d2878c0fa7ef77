import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdedge.data.views import crop_box


class Recorded:
    """Gives chosen numbers where a generator would draw."""

    def __init__(self, numbers):
        self._numbers = iter(numbers)

    def uniform(self, low, high):
        """The next number, scaled."""
        return low + (high - low) * next(self._numbers)

    def integers(self, low, high):
        """The next number, scaled and cut."""
        return low + int((high - low) * next(self._numbers))


def torchvision_box(width, height, scale_min, numbers):
    """Transcribes RandomResizedCrop.get_params, its random calls answered by `numbers`."""
    stream = Recorded(numbers)
    area = height * width
    log_ratio = (math.log(3.0 / 4.0), math.log(4.0 / 3.0))
    for _ in range(10):
        target_area = area * stream.uniform(scale_min, 1.0)
        aspect_ratio = math.exp(stream.uniform(*log_ratio))
        w = int(round(math.sqrt(target_area * aspect_ratio)))  # noqa: RUF046 - as theirs
        h = int(round(math.sqrt(target_area / aspect_ratio)))  # noqa: RUF046
        if 0 < w <= width and 0 < h <= height:
            i = stream.integers(0, height - h + 1)
            j = stream.integers(0, width - w + 1)
            return j, i, w, h
    in_ratio = float(width) / float(height)
    if in_ratio < 3.0 / 4.0:
        w = width
        h = int(round(w / (3.0 / 4.0)))  # noqa: RUF046
    elif in_ratio > 4.0 / 3.0:
        h = height
        w = int(round(h * (4.0 / 3.0)))  # noqa: RUF046
    else:
        w = width
        h = height
    return (width - w) // 2, (height - h) // 2, w, h


@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    scale_min=st.sampled_from([0.08, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_crop_is_torchvisions_for_the_same_random_numbers(width, height, scale_min, seed):
    numbers = np.random.default_rng(seed).random(40).tolist()
    expected = torchvision_box(width, height, scale_min, numbers)
    left, top, w, h = crop_box(width, height, scale_min=scale_min, generator=Recorded(numbers))
    assert expected == (left, top, w, h)
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height


def test_crops_are_distributed_as_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms")
    image = torch.zeros(3, 90, 160)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [
                transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
                for _ in range(4000)
            ]
        )[:, [1, 0, 3, 2]]
    generator = np.random.default_rng(0)
    ours = np.array([crop_box(160, 90, scale_min=0.08, generator=generator) for _ in range(4000)])
    # Four standard errors of the difference of two means.
    error = 4 * np.sqrt(theirs.var(0) / 4000 + ours.var(0) / 4000)
    assert (np.abs(theirs.mean(0) - ours.mean(0)) < error).all()
