import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from kdedge.loading.views import Augmentation, crop_box, random_stream, shift_hue, strengthened
from kdedge.runtime.preprocess import Preprocess


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


@pytest.mark.parametrize("n_failed", [9, 10])
def test_a_crop_is_drawn_ten_times_at_most(n_failed):
    # A square with the whole area is too high for this image; one with the smallest area fits
    numbers = [1.0, 0.5] * n_failed + [0.0, 0.5, 0.5, 0.5]
    box = crop_box(100, 50, scale_min=0.08, generator=Recorded(numbers))
    assert box == torchvision_box(100, 50, 0.08, numbers)
    assert box[2:] == ((20, 20) if n_failed == 9 else (67, 50))


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


def photo(seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))


def pixels_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.07, 0.1])
def test_the_hue_is_turned_as_torchvision_turns_it(shift):
    functional = pytest.importorskip("torchvision.transforms.functional")
    assert shift_hue(photo(), shift) == functional.adjust_hue(photo(), shift)


class Chosen(Recorded):
    """Gives chosen numbers to a strong view: the order of its color changes too."""

    def random(self):
        """The next number."""
        return next(self._numbers)

    def uniform(self, low, high, size=None):
        """The next number or numbers, scaled."""
        if size is None:
            return super().uniform(low, high)
        return np.array([super(Chosen, self).uniform(low, high) for _ in range(size)])

    def permutation(self, count):
        """Backwards."""
        return np.arange(count)[::-1]


def test_a_strong_view_is_torchvisions_color_jitter_gray_and_pillows_blur():
    functional = pytest.importorskip("torchvision.transforms.functional")
    changed = functional.adjust_hue(photo(), -0.06)
    changed = functional.adjust_saturation(changed, 0.6 + 0.8 * 0.9)
    changed = functional.adjust_contrast(changed, 0.6 + 0.8 * 0.1)
    changed = functional.adjust_brightness(changed, 0.6 + 0.8 * 0.3)

    def blurred(image, share):
        return image.filter(ImageFilter.GaussianBlur((0.1 + 1.9 * share) * 24 / 224))

    colors = [0.3, 0.1, 0.9, 0.2]
    actual = strengthened(photo(), Chosen([0.79, *colors, 0.2, 0.5]))
    assert actual == blurred(changed, 0.5)
    gray = functional.to_grayscale(changed, num_output_channels=3)
    assert strengthened(photo(), Chosen([0.79, *colors, 0.19, 1.0])) == blurred(gray, 1.0)
    assert strengthened(photo(), Chosen([0.8, 0.2, 0.0])) == blurred(photo(), 0.0)


def test_a_strong_view_has_the_crop_and_flip_of_the_plain_one():
    preprocess = Preprocess(24, (0.5,) * 3, (0.5,) * 3)
    pixels = pixels_of(photo())
    for view in range(1, 6):
        plain, strong = (
            Augmentation(3, 0.2, True, is_strong)(pixels, preprocess, position=7, view=view)
            for is_strong in (False, True)
        )
        again = Augmentation(3, 0.2, True, True)(pixels, preprocess, position=7, view=view)
        assert torch.equal(strong, again)
        assert not torch.equal(strong, plain)
        generator = random_stream(3, view, 8)
        crop_box(24, 24, scale_min=0.2, generator=generator)
        generator.random()  # the flip's
        image = Image.fromarray(plain.permute(1, 2, 0).numpy())
        assert torch.equal(strong, pixels_of(strengthened(image, generator)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_crop_is_resized_as_pillow_resizes_it_but_for_rounding(interpolation):
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = small.resize((400, 300), Image.Resampling.BICUBIC)
    preprocess = Preprocess(64, (0.5,) * 3, (0.5,) * 3, interpolation)
    for view in range(1, 9):
        stream = random_stream(3, view, 8)
        left, top, width, height = crop_box(400, 300, scale_min=0.08, generator=stream)
        cropped = image.crop((left, top, left + width, top + height))
        cropped = cropped.resize((64, 64), Image.Resampling[interpolation.upper()])
        if stream.random() < 0.5:
            cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        actual = Augmentation(3, 0.08, True)(pixels_of(image), preprocess, position=7, view=view)
        difference = (actual.int() - pixels_of(cropped).int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.1
