"""The tensors that PromptKD trains, in one module; its state dict is the student's file."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.image_backbone import AnyBackbone, ImageBackbone
from kdedge.clip.prompts import TextPrompts, make_text_prompts, make_visual_prompts
from kdedge.errors import RecipeError
from kdedge.methods._projector import Projector
from kdedge.methods.losses import ChosenLosses

if TYPE_CHECKING:
    from kdedge.methods.promptkd import Settings


class Student(nn.Module):
    """The parts of a student; a part that the settings leave out is None.

    Attributes:
        visual_prompts: [depth, n_ctx_vision, D_vision], under `tune: prompts`.
        projector: to the teacher's dimension, under `class_vectors: teacher`.
        visual: the student's own copy of the image encoder, under `tune: full`.
        text_prompts: context of the text encoder, under `class_vectors: student`.
        losses: the losses by name; most have nothing to train.
        scale: the teacher's `logit_scale.exp()`, for a backbone without a scale.
    """

    scale: Tensor | None

    def __init__(
        self,
        visual_prompts: nn.Parameter | None,
        projector: Projector | None,
        *,
        visual: nn.Module | None = None,
        text_prompts: TextPrompts | None = None,
        losses: ChosenLosses,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.visual_prompts = visual_prompts
        self.projector = projector
        self.visual = visual
        self.text_prompts = text_prompts
        self.losses = losses.build()
        self.register_buffer("scale", None if scale is None else torch.tensor(scale))


def check_image_backbone(backbone: ImageBackbone, *, tune: str, needs_texts: bool) -> None:
    """Checks that the settings need no more than an image encoder.

    Raises:
        RecipeError: the settings need a text encoder, or they freeze an image encoder that was
            never trained with texts.
    """
    if needs_texts:
        raise RecipeError(
            f"kdedge cannot run the text encoder of {backbone.name}, which class_vectors: student"
            " needs.\n"
            "  Use class_vectors: teacher, or a CLIP such as ViT-B-16."
        )
    if not backbone.is_trained_with_texts and tune != "full":
        raise RecipeError(
            f"{backbone.name} was not trained with texts: with tune: {tune} its features cannot be"
            " compared with class vectors.\n"
            "  Use tune: full, with an optim.lr far below 0.005, which is for prompts."
        )


def make_student(
    backbone: AnyBackbone,
    settings: Settings,
    *,
    teacher_dim: int,
    scale: float,
    generator: torch.Generator,
) -> Student:
    """Builds the parts that the settings train.

    Args:
        backbone: the frozen CLIP, or an image encoder alone.
        settings: choose the parts.
        teacher_dim: D_teacher.
        scale: the teacher's, for a backbone that has none.
        generator: on the CPU; draws prompts, projector and context, in this order.

    Raises:
        RecipeError: an encoder has fewer layers than get prompts, a loss compares features of
            different dimensions, or the settings need more than an image encoder.
    """
    if not isinstance(backbone, Backbone):
        check_image_backbone(backbone, tune=settings.tune, needs_texts=settings.needs_texts)
    visual_prompts = projector = visual = text_prompts = None
    if settings.tune == "prompts":
        visual_prompts = make_visual_prompts(
            backbone,
            n_ctx=settings.n_ctx_vision,
            prompt_depth=settings.prompt_depth,
            generator=generator,
        )
    if settings.tune == "full":
        visual = copy.deepcopy(backbone.visual).requires_grad_(True)
    if settings.class_vectors == "teacher":
        projector = Projector(
            backbone.embed_dim, teacher_dim, generator, depth=settings.projector_depth
        )
    else:
        assert isinstance(backbone, Backbone)
        text_prompts = make_text_prompts(
            backbone,
            n_ctx=settings.n_ctx_text,
            prompt_depth=settings.prompt_depth_text,
            context_init=settings.context_init,
            generator=generator,
        )
    student = Student(
        visual_prompts,
        projector,
        visual=visual,
        text_prompts=text_prompts,
        losses=settings.losses,
        scale=None if isinstance(backbone, Backbone) else scale,
    )
    if projector is None and backbone.embed_dim != teacher_dim:
        for name, loss in student.losses.items():
            if loss.needs_equal_dims:
                raise RecipeError(
                    f"loss {name} compares the student's features ({backbone.embed_dim}"
                    f" dimensions) with the teacher's ({teacher_dim}), but class_vectors: student"
                    " has no projector.\n"
                    "  Use a loss on logits, such as the default, or class_vectors: teacher."
                )
    return student
