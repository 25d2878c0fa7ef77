"""The frozen backbone of a role."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from kdedge.clip.backbone import Backbone
from kdedge.clip.find import find_backbone, load_backbone
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.resolve import BackboneSpec
from kdedge.config.recipe import (
    Recipe,
)
from kdedge.setup.method import (
    MethodChoice,
    Role,
    model_spec,
)

log = logging.getLogger(__name__)


def backbone_spec(recipe: Recipe, role: Role) -> BackboneSpec:
    """The backbone that a recipe names for a role."""
    spec = model_spec(recipe, role)
    return BackboneSpec(spec.backbone, spec.weights, spec.config, spec.quick_gelu)


def load_role_backbone(
    recipe: Recipe, role: Role, *, device: torch.device, cache: Path | None
) -> Backbone:
    """Loads the frozen CLIP of a role."""
    return load_backbone(backbone_spec(recipe, role), device=device, text_cache_folder=cache)


def load_student_backbone(
    recipe: Recipe, choice: MethodChoice, *, device: torch.device, cache: Path | None
) -> AnyBackbone:
    """Loads the student's frozen CLIP, or its image encoder alone if its texts are not needed."""
    found = find_backbone(backbone_spec(recipe, "student"), needs_texts=choice.settings.needs_texts)
    return found.load(device=device, text_cache_folder=cache)


def cache_folder(root: Path) -> Path:
    """Where features of frozen texts are kept, beside the runs."""
    return root / ".cache" / "text_features"
