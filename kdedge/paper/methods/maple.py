"""MaPLe: text prompts in several layers, and visual prompts that are linear maps of them.

Paper: Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023, arXiv:2210.03117, section 3.2:
visual prompts are P~_k = F_k(P_k) for each of the first J layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import (
    TextPrompts,
    check_takes_prompts,
    make_text_prompts,
    random_linear,
    text_width,
)
from kdedge.config.optim_spec import OptimSettings
from kdedge.methods.base import EncoderName, MethodInputs, MethodSettings
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import TextPromptMethod

METHOD = Declaration(
    label="MaPLe",
    paper="arXiv:2210.03117",
    data_needs=DataNeeds(labels=True),
    # The authors' code, base-to-novel.
    optim=OptimSettings(lr=0.0035, epochs=5, batch_size=4),
)


class Settings(MethodSettings):
    """Settings of MaPLe; defaults from the authors' base-to-novel configuration."""

    n_ctx: int = Field(
        2, ge=1, le=1000, description="Context tokens, and visual prompts, in each prompted layer."
    )
    prompt_depth: int = Field(
        9,
        ge=1,
        le=1000,
        description="Layers of both encoders with prompts of their own, from the first.",
    )
    context_init: str = Field(
        "a photo of a",
        description="Words whose embeddings initialize the context; further words stay as words.",
    )

    @property
    def layer_counts(self) -> dict[str, tuple[EncoderName, ...]]:
        """One setting counts the layers of both encoders, whose prompts are coupled."""
        return {"prompt_depth": ("image", "text")}


class CoupledPrompts(nn.Module):
    """The parameters of MaPLe: text prompts, and the couplings that map them to visual prompts.

    Attributes:
        text_prompts: P_0 … P_{J-1}.
        couplings: F_0 … F_{J-1}, linear, D_text -> D_vision.
    """

    def __init__(self, text_prompts: TextPrompts, couplings: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.text_prompts = text_prompts
        self.couplings = nn.ModuleList(couplings)

    def visual_prompts(self) -> Tensor:
        """[prompt_depth, n_ctx, D_vision]: F_k(P_k) of each prompted layer."""
        prompts = self.text_prompts
        layers = [prompts.context, *prompts.deep_context]
        return torch.stack([f(p) for f, p in zip(self.couplings, layers, strict=True)])


class Method(TextPromptMethod):
    """MaPLe on a frozen backbone."""

    module: CoupledPrompts
    half_precision = r"\.context$|^couplings\.0\."

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        check_takes_prompts(backbone)
        depth = settings.prompt_depth
        generator = inputs.generator
        super().__init__(backbone, settings, inputs)
        text_prompts = make_text_prompts(
            backbone,
            n_ctx=settings.n_ctx,
            prompt_depth=depth,
            context_init=settings.context_init,
            generator=generator,
        )
        sizes = text_width(backbone), backbone.model.visual.class_embedding.shape[0]
        # One for the first layer, and equal copies for the others, as in the authors' code
        # (`_get_clones`)
        first = random_linear(*sizes, generator)
        deep = random_linear(*sizes, generator)
        couplings = [first, *(copy.deepcopy(deep) for _ in range(depth - 1))]
        self.module = CoupledPrompts(text_prompts, couplings).to(backbone.device)

    def visual_prompts(self) -> Tensor:
        """[prompt_depth, n_ctx, D_vision], as the couplings map the text prompts."""
        return self.module.visual_prompts()
