"""Zero-shot CLIP: compares images with class texts; nothing is trained.

Paper: Radford et al., CLIP, arXiv:2103.00020, section 3.1.4 for the ensemble: each template's
features are scaled to unit length, averaged, and scaled again.
Template lists: open_clip's OpenAI ImageNet list (80), and its simple subset (7); to the latter the
recipe's own template is added if it is not one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from pydantic import Field
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.prompts import readable
from kdedge.methods.base import BaseMethod, MethodInputs, MethodSettings
from kdedge.methods.registry import DataNeeds, Declaration

METHOD = Declaration(label="Zero-shot CLIP", paper="arXiv:2103.00020", data_needs=DataNeeds())


class Settings(MethodSettings):
    """Settings of zero-shot CLIP."""

    templates: Literal["single", "ensemble7", "ensemble80"] = Field(
        "single",
        description="single: the recipe's template. ensemble7: open_clip's seven simple templates"
        " and the recipe's."
        " ensemble80: OpenAI's 80 ImageNet templates (CLIP, arXiv:2103.00020).",
    )


def ensemble_text_features(
    backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """[C, D], unit length: mean of each template's normalized features (CLIP, section 3.1.4)."""
    texts = [[template.format(readable(name)) for name in class_names] for template in templates]
    per_template = [unit_length(backbone.text_features_raw(names)) for names in texts]
    return unit_length(torch.stack(per_template).mean(dim=0))


def template_list(kind: str, template: str) -> list[str]:
    """The templates of a value of `Settings.templates`, as text patterns with `{}`."""
    if kind == "single":
        return [template]
    if kind == "ensemble7":
        simple = [make("{}") for make in SIMPLE_IMAGENET_TEMPLATES]
        return simple if template in simple else [*simple, template]
    return [make("{}") for make in OPENAI_IMAGENET_TEMPLATES]


class Method(BaseMethod):
    """Zero-shot CLIP as a method and as a teacher."""

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        self.module = nn.Module()
        templates = template_list(settings.templates, inputs.template)
        self._class_vectors = ensemble_text_features(backbone, inputs.class_names, templates)

    def class_vectors(self) -> Tensor:
        """[C, D], the text features."""
        return self._class_vectors
