"""A teacher sees its student's crop in its own size and normalization."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdedge.clip.backbone import Backbone
from kdedge.data.decoding import normalizer
from kdedge.errors import RecipeError
from kdedge.runtime.preprocess import Preprocess, resize_and_crop
from kdedge.training.teacher_adapters import adapted_teacher


class Teacher:
    """Zero-shot CLIP of two classes as a teacher that remembers what it was shown."""

    device = torch.device("cpu")
    class_names = ("cat", "dog")

    def __init__(self, backbone: Backbone) -> None:
        self.scale, self.preprocess = backbone.scale, backbone.preprocess
        self.forward_features = backbone.image_features
        self._vectors = torch.eye(2, backbone.embed_dim)

    def class_vectors(self) -> torch.Tensor:
        return self._vectors

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * self.forward_features(images) @ self._vectors.T


@pytest.fixture
def teacher(tiny_backbone: Backbone) -> Teacher:
    return Teacher(tiny_backbone)


@dataclass(frozen=True)
class Student:
    """What the teacher asks of a student's backbone."""

    preprocess: Preprocess
    name: str = "small"


def prepared(preprocess: Preprocess) -> torch.Tensor:
    """[1, 3, H, W] of a smooth picture."""
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (96, 1)), np.tile(ramp[:, None], (1, 96)), np.full((96, 96), 90)], -1
    )
    image = Image.fromarray(pixels.astype(np.uint8))
    pixels = torch.from_numpy(np.array(resize_and_crop(image, preprocess)))
    return normalizer(preprocess, torch.device("cpu"))(pixels[None])


def test_a_student_of_the_same_size_and_normalization_has_the_teacher_itself(
    teacher: Teacher,
) -> None:
    same = replace(teacher.preprocess, interpolation="bilinear", resize_mode="squash")
    assert adapted_teacher(Student(teacher.preprocess), teacher) is teacher
    view, images = adapted_teacher(Student(same), teacher), prepared(same)
    assert torch.equal(view.forward_features(images), teacher.forward_features(images))


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"mean": (0.5, 0.4, 0.3), "std": (1.0, 0.5, 0.25)}, 1e-4),
        # resized twice, and rounded to 8 bits between
        ({"size_px": 48, "mean": (0.0,) * 3, "std": (1.0,) * 3}, 0.05),
    ],
)
def test_another_normalization_or_size_is_undone(
    teacher: Teacher, change: dict[str, Any], tolerance: float
) -> None:
    theirs = teacher.preprocess
    ours = replace(theirs, **change)
    view = adapted_teacher(Student(ours), teacher)
    assert view is not teacher
    assert (view.scale, view.class_vectors() is teacher.class_vectors()) == (teacher.scale, True)
    expected = teacher.forward_features(prepared(theirs))
    found = view.forward_features(prepared(ours))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    raw = teacher.forward_features(
        torch.nn.functional.interpolate(prepared(ours), (theirs.size_px, theirs.size_px))
    )
    assert (raw - expected).abs().max() > 2 * tolerance


def test_a_resized_view_has_no_colors_beyond_black_and_white(
    teacher: Teacher,
) -> None:
    theirs = teacher.preprocess
    ours = replace(theirs, size_px=2 * theirs.size_px, mean=(0.0,) * 3, std=(1.0,) * 3)
    seen: list[torch.Tensor] = []
    teacher.forward_features = seen.append
    edge = torch.zeros(1, 3, ours.size_px, ours.size_px)
    edge[..., 31:] = 1.0
    adapted_teacher(Student(ours), teacher).forward_features(edge)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (theirs.mean, theirs.std))
    pixels = seen[0] * std + mean
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


def test_a_teacher_of_larger_images_is_refused(teacher: Teacher) -> None:
    small = replace(teacher.preprocess, size_px=16)
    with pytest.raises(RecipeError, match="takes images of 32 pixels, and student small of 16"):
        adapted_teacher(Student(small), teacher)
