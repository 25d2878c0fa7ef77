"""What PromptKD trains, in one module: its state dict is a student's file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdedge.clip.image_backbone import ImageBackbone
from kdedge.clip.prompts import TextPrompts
from kdedge.errors import RecipeError
from kdedge.methods._projector import Projector
from kdedge.methods.losses import LossName, load_loss


class Student(nn.Module):
    """The parts of a student; one that the settings leave out is None.

    Attributes:
        visual_prompts: [depth, n_ctx_vision, D_vision], under `tune: prompts`.
        projector: to the teacher's dimension, under `class_vectors: teacher`.
        visual: the student's own copy of the image tower, under `tune: full`.
        text_prompts: context of the text tower, under `class_vectors: student`.
        losses: the losses by name; most have nothing to train.
        scale: the teacher's `logit_scale.exp()`, for a backbone that has none of its own.
    """

    scale: Tensor | None

    def __init__(
        self,
        visual_prompts: nn.Parameter | None,
        projector: Projector | None,
        *,
        visual: nn.Module | None = None,
        text_prompts: TextPrompts | None = None,
        losses: Sequence[LossName] = ("kl",),
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.visual_prompts = visual_prompts
        self.projector = projector
        self.visual = visual
        self.text_prompts = text_prompts
        self.losses = nn.ModuleDict({name: load_loss(name).Loss() for name in losses})
        self.register_buffer("scale", None if scale is None else torch.tensor(scale))


def check_image_tower(backbone: ImageBackbone, *, tune: str, needs_texts: bool) -> None:
    """Refuses settings for which an image tower alone is not enough.

    Raises:
        RecipeError: a text tower would be run, or features would be projected as they are that were
            never trained with texts.
    """
    if needs_texts:
        raise RecipeError(
            f"{backbone.name} has no text tower that runs here, and class_vectors: student wants"
            " one.\n  Use class_vectors: teacher, or a CLIP such as ViT-B-16."
        )
    if not backbone.is_trained_with_texts and tune != "full":
        raise RecipeError(
            f"{backbone.name} was not trained with texts, so tune: {tune} would leave it without"
            " features that a class vector could be compared with.\n"
            "  Use tune: full, and an optim.lr far below the 0.005 that prompts take."
        )
