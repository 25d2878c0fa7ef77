"""IVLP: independent text and visual prompts in both encoders, learned by cross-entropy.

Papers: the independent V-L prompting of Khattak et al., MaPLe, CVPR 2023, arXiv:2210.03117, section
4.2, and the baseline of Khattak et al., Self-regulating Prompts, ICCV 2023, arXiv:2307.06948,
section 3.1. `clip.text` and `clip.vision` describe its convention for deep prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import TextPrompts, make_text_prompts, make_visual_prompts, prompted_texts
from kdedge.clip.text import TokenizedTexts
from kdedge.config.optim_spec import OptimSettings
from kdedge.methods.base import EncoderName, MethodInputs, MethodSettings
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import TextPromptMethod

METHOD = Declaration(
    label="IVLP",
    paper="arXiv:2307.06948",
    data_needs=DataNeeds(labels=True),
    # PromptSRC's code, base-to-novel; MaPLe's code: lr 0.0035, 5 epochs, batch_size 4.
    optim=OptimSettings(lr=0.0025, epochs=20, batch_size=4),
)


class Settings(MethodSettings):
    """Settings of IVLP; defaults from PromptSRC's code (MaPLe's: 2 + 2, depth 12)."""

    n_ctx_text: int = Field(
        4, ge=1, le=1000, description="Context tokens in each prompted text layer."
    )
    n_ctx_vision: int = Field(
        4, ge=1, le=1000, description="Visual prompts in each prompted image layer."
    )
    prompt_depth_text: int = Field(
        9,
        ge=1,
        le=1000,
        description="Text layers with context tokens of their own, from the first.",
    )
    prompt_depth_vision: int = Field(
        9,
        ge=1,
        le=1000,
        description="Image layers with visual prompts of their own, from the first.",
    )
    context_init: str = Field(
        "a photo of a", description="Words whose embeddings initialize the context."
    )

    @property
    def layer_counts(self) -> dict[str, tuple[EncoderName, ...]]:
        """Each setting counts the layers of one encoder."""
        return {"prompt_depth_text": ("text",), "prompt_depth_vision": ("image",)}


class PromptedCLIP(nn.Module):
    """The parameters of IVLP: text prompts and visual prompts."""

    def __init__(self, text_prompts: TextPrompts, visual_prompts: nn.Parameter) -> None:
        super().__init__()
        self.text_prompts = text_prompts
        self.visual_prompts = visual_prompts


class Method(TextPromptMethod):
    """IVLP on a frozen backbone."""

    module: PromptedCLIP

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        self.module = self.make_module()

    def class_texts(self, names: Sequence[str]) -> TokenizedTexts:
        """Tokenizes "<context> NAME." with room for the context."""
        n_ctx = self._settings.n_ctx_text
        init = self._settings.context_init
        return prompted_texts(self._backbone, names, n_ctx=n_ctx, context_init=init)

    def make_module(self) -> PromptedCLIP:
        """Draws the initial values, first of the text prompts, then of the visual prompts."""
        backbone = self._backbone
        settings = self._settings
        generator = self._inputs.generator
        text_prompts = make_text_prompts(
            backbone,
            n_ctx=settings.n_ctx_text,
            prompt_depth=settings.prompt_depth_text,
            context_init=settings.context_init,
            generator=generator,
        )
        visual_prompts = make_visual_prompts(
            backbone,
            n_ctx=settings.n_ctx_vision,
            prompt_depth=settings.prompt_depth_vision,
            generator=generator,
        )
        return PromptedCLIP(text_prompts, visual_prompts)

    def visual_prompts(self) -> Tensor:
        """[prompt_depth_vision, n_ctx_vision, D_vision]."""
        return self.module.visual_prompts
