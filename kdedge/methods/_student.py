"""The tensors that PromptKD trains, in one module; its state dict is the student's file."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.image_backbone import AnyBackbone, ImageBackbone
from kdedge.clip.low_rank import (
    BLOCKS,
    LowRankChanges,
    layers_above,
    make_low_rank_changes,
    with_layers,
)
from kdedge.clip.prompts import TextPrompts, make_text_prompts, make_visual_prompts
from kdedge.clip.reduction import check_reduction, first_blocks
from kdedge.errors import RecipeError
from kdedge.methods._promptkd_settings import Settings
from kdedge.methods.protocol import Projector


class Student(nn.Module):
    """The parts of a student; a part that the settings leave out is None.

    Args:
        backbone: the frozen CLIP, or an image encoder alone.
        settings: choose the parts.
        class_vectors: [C, D_teacher], the teacher's.
        scale: the teacher's, for a backbone that has none.
        generator: on the CPU; draws prompts, low-rank changes, projector and context, in this
            order.

    Attributes:
        visual_prompts: [depth, n_ctx_vision, D_vision], under `tune: prompts`.
        lora: low-rank changes of the frozen image encoder, under `tune: lora`.
        projector: to the teacher's dimension, under `class_vectors: teacher`.
        visual: the student's own copy of the image encoder, under `tune: full`.
        text_prompts: context of the text encoder, under `class_vectors: student`.
        losses: the losses by name; most have nothing to train.
        scale: the teacher's `logit_scale.exp()`, for a backbone without a scale.

    Raises:
        RecipeError: an encoder has fewer layers than the settings name, or too few tokens to merge,
            or cannot have their low-rank changes; a loss compares features of different
            dimensions; or the settings need more than an image encoder.
    """

    visual_prompts: nn.Parameter | None
    projector: Projector | None
    visual: nn.Module | None
    lora: LowRankChanges | None
    text_prompts: TextPrompts | None
    scale: Tensor | None

    def __init__(
        self,
        backbone: AnyBackbone,
        settings: Settings,
        *,
        class_vectors: Tensor,
        scale: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            check_image_backbone(backbone, tune=settings.tune, needs_texts=settings.needs_texts)
        check_reduction(backbone, depth=settings.depth, merge_tokens=settings.merge_tokens)
        lora = text_prompts = None
        teacher_dim = class_vectors.shape[1]
        self.visual_prompts = self.projector = self.visual = None
        if settings.has_prompts:
            self.visual_prompts = make_visual_prompts(
                backbone,
                n_ctx=settings.n_ctx_vision,
                prompt_depth=settings.prompt_depth,
                generator=generator,
            )
        if settings.has_lora:
            lora = make_low_rank_changes(
                backbone,
                rank=settings.lora.rank,
                alpha=settings.lora.alpha,
                projections=settings.lora.projections,
                blocks=settings.lora_blocks,
                generator=generator,
            )
        if settings.class_vectors == "teacher":
            self.projector = Projector(
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
        if settings.tune == "full":
            kept = first_blocks(backbone.visual, settings.depth)
            self.visual = copy.deepcopy(kept).requires_grad_(True)
        self.lora, self.text_prompts = lora, text_prompts
        self.losses = settings.losses.build()
        has_scale = isinstance(backbone, Backbone)
        self.register_buffer("scale", None if has_scale else torch.tensor(scale))
        if self.projector is None and backbone.embed_dim != teacher_dim:
            for name, loss in self.losses.items():
                if loss.needs_equal_dims:
                    raise RecipeError(
                        f"loss {name} compares the student's features ({backbone.embed_dim}"
                        f" dimensions) with the teacher's ({teacher_dim}), but class_vectors:"
                        " student has no projector.\n"
                        "  Use a loss on logits, such as the default, or class_vectors: teacher."
                    )

    def encoder(self, frozen: nn.Module) -> nn.Module:
        """The image encoder in training: the backbone's, the student's copy, or one with `lora`."""
        if self.lora is not None:
            return with_layers(frozen, self.lora.layers())
        return frozen if self.visual is None else self.visual

    def deployed_encoder(self, frozen: nn.Module) -> nn.Module:
        """The image encoder, low-rank changes merged; its layers have the backbone's types."""
        if self.lora is None:
            return self.encoder(frozen)
        merged = {name: layer.as_linear() for name, layer in self.lora.layers().items()}
        return with_layers(frozen, merged)

    def layers_above(self, frozen: nn.Module) -> dict[str, int]:
        """See `BaseMethod.layers_above`."""
        above = layers_above(frozen)
        if self.visual is not None:
            return {f"visual.{name}": n_layers for name, n_layers in above.items()}
        if self.lora is None:
            return {}
        return {
            f"lora.{name.removeprefix(BLOCKS)}.{part}": above[f"{name}.weight"]
            for name in self.lora.layers()
            for part in ("a", "b")
        }


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
