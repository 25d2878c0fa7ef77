"""The frozen backbone of a role."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from kdedge.clip.backbone import Backbone, load_backbone
from kdedge.clip.image_backbone import AnyBackbone, has_texts, load_image_backbone
from kdedge.config.recipe import (
    Recipe,
)
from kdedge.setup.method import (
    MethodChoice,
    Role,
    model_spec,
)

log = logging.getLogger(__name__)


def load_role_backbone(
    recipe: Recipe, role: Role, *, device: torch.device, cache: Path | None
) -> Backbone:
    """Loads the frozen CLIP of a role."""
    spec = model_spec(recipe, role)
    return load_backbone(
        name=spec.backbone,
        weights=spec.weights,
        config=spec.config,
        quick_gelu=spec.quick_gelu,
        device=device,
        cache_folder=cache,
    )


def load_student_backbone(
    recipe: Recipe, choice: MethodChoice, *, device: torch.device, cache: Path | None
) -> AnyBackbone:
    """Loads the student's frozen CLIP, or its image tower alone where that will do.

    It will where the method runs no text tower and the model has none that runs here.
    """
    spec = model_spec(recipe, "student")
    if choice.settings.needs_texts or has_texts(spec.backbone, spec.config):
        return load_role_backbone(recipe, "student", device=device, cache=cache)
    return load_image_backbone(
        name=spec.backbone,
        weights=spec.weights,
        config=spec.config,
        quick_gelu=spec.quick_gelu,
        device=device,
    )


def cache_folder(root: Path) -> Path:
    """Where features of frozen texts are kept, beside the runs."""
    return root / ".cache" / "text_features"
