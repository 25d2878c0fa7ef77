"""ATPrompt: learned context with fixed attribute words in it, such as "shape", before the name.

Paper: Li et al., Advancing Textual Prompt Learning with Anchored Attributes, ICCV 2025,
arXiv:2412.09442. A text is "[V1]...[Vn] ATTRIBUTE1 [V1]...[Vn] ATTRIBUTE2 ... [V1]...[Vm] NAME.",
with [V] learned and attributes of the whole data set, not of single classes. Deep layers replace
the context before the name only; the tokens before the attributes stay ordinary tokens.

The paper puts such texts into other methods. Here the method is PromptSRC, which trains PromptKD's
teacher; its visual prompts, losses and average are unchanged. With `self_regulation: false`,
`prompt_depth_text: 1`, `n_ctx_vision: 0`, `n_ctx_text: 2`, `n_ctx_attribute: 2` and `context_init:
""` it is the paper's CoOp + ATPrompt, which the authors train as CoOp for 100 epochs (lr 0.002,
batch_size 32).

An attribute may have several tokens. The recipes have the published attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import (
    placeholders,
    prompted_text_features,
    readable,
    room_for_context,
    text_width,
)
from kdedge.clip.text import TokenizedTexts
from kdedge.config.optim_spec import OptimSettings
from kdedge.errors import RecipeError
from kdedge.loading.batch import Batch
from kdedge.methods import ivlp, promptsrc
from kdedge.methods.base import StepOutput
from kdedge.methods.registry import DataNeeds, Declaration

METHOD = Declaration(
    label="ATPrompt",
    paper="arXiv:2412.09442",
    data_needs=DataNeeds(labels=True),
    # PromptSRC's values
    optim=OptimSettings(lr=0.0025, epochs=20, batch_size=4),
)

ATTRIBUTE_STD = 0.01
"""Standard deviation of the initial context before attributes (the authors' code)."""


class Settings(promptsrc.Settings):
    """Settings of ATPrompt: PromptSRC's and those below."""

    attributes: list[str] = Field(
        ["color", "shape"],
        min_length=1,
        max_length=16,
        description="Attribute words before the class name, in this order; the default is"
        " ImageNet's, and the recipes of the benchmark sets have their own.",
    )
    n_ctx_attribute: int = Field(
        4, ge=1, le=1000, description="Context tokens before each attribute."
    )
    n_ctx_vision: int = Field(
        4,
        ge=0,
        le=1000,
        description="Visual prompts in each prompted image layer; 0 for none, as for CoOp.",
    )
    self_regulation: bool = Field(
        True,
        description="Use PromptSRC's losses, and average over epochs. false: cross-entropy only.",
    )

    @field_validator("attributes")
    @classmethod
    def _refuse_empty(cls, value: list[str]) -> list[str]:
        if not all(word.strip() for word in value):
            raise ValueError("has an empty attribute")
        return value


def anchored_texts(
    backbone: Backbone, class_names: Sequence[str], settings: Settings
) -> TokenizedTexts:
    """Tokenizes the prompts, with placeholders where context is learned.

    `context_at` holds the positions of all attributes' context, then of the name's context.

    Raises:
        RecipeError: the longest class name leaves too few positions.
    """
    n_before = settings.n_ctx_attribute
    n_own = settings.n_ctx_text
    context_at: list[int] = []
    position = 1  # after the start token
    for attribute in settings.attributes:
        context_at += range(position, position + n_before)
        position += n_before + len(backbone.tokenizer.encode(attribute))
    context_at += range(position, position + n_own)
    n_positions = position - 1 + n_own
    longest, room = room_for_context(backbone, class_names)
    if n_positions > room >= 1:  # `tokenize` refuses a name that leaves no room
        raise RecipeError(
            f"attributes, n_ctx_attribute and n_ctx_text take {n_positions} positions, but the"
            f' class name "{longest}" leaves {room} of this CLIP\'s {backbone.context_length}.\n'
            f"  Use fewer attributes ({len(settings.attributes)} now), or lower n_ctx_attribute."
        )
    anchors = " ".join(f"{placeholders(n_before)} {word}" for word in settings.attributes)
    texts = [f"{anchors} {placeholders(n_own)} {readable(name)}." for name in class_names]
    positions = torch.tensor(context_at, device=backbone.device)
    return replace(backbone.tokenize(texts), context_at=positions)


class AnchoredCLIP(ivlp.PromptedCLIP):
    """The parameters of ATPrompt: IVLP's parameters and the context of the attributes.

    Attributes:
        attribute_context: [n_attributes * n_ctx_attribute, D_text].
    """

    def __init__(self, prompted: ivlp.PromptedCLIP, attribute_context: Tensor) -> None:
        super().__init__(prompted.text_prompts, prompted.visual_prompts)
        self.attribute_context = nn.Parameter(attribute_context)


class Method(promptsrc.Method):
    """ATPrompt on a frozen backbone: PromptSRC with other texts."""

    module: AnchoredCLIP
    half_precision = r"\.context$|^attribute_context$"
    _settings: Settings

    def class_texts(self, names: Sequence[str]) -> TokenizedTexts:
        """The texts with attributes before the class names (`anchored_texts`)."""
        return anchored_texts(self._backbone, names, self._settings)

    def make_module(self) -> AnchoredCLIP:
        """Draws the initial values, PromptSRC's first."""
        prompted = super().make_module()
        settings = self._settings
        n_context = len(settings.attributes) * settings.n_ctx_attribute
        shape = n_context, text_width(self._backbone)
        drawn = torch.randn(shape, generator=self._inputs.generator)
        return AnchoredCLIP(prompted, (ATTRIBUTE_STD * drawn).to(self._backbone.device))

    def text_features(self, texts: TokenizedTexts) -> Tensor:
        """[C, D], unit length, with gradients in the memory of one chunk of classes."""
        prompts = self.module.text_prompts
        context = torch.cat([self.module.attribute_context, prompts.context])
        return prompted_text_features(self._backbone, texts, context, prompts.deep_context)

    def training_step(self, batch: Batch) -> StepOutput:
        """PromptSRC's losses; the cross-entropy alone if `self_regulation` is off."""
        if self._settings.self_regulation:
            return super().training_step(batch)
        return ivlp.Method.training_step(self, batch)

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """PromptSRC's weights; None if `self_regulation` is off."""
        return super().averaging_weights(n_epochs) if self._settings.self_regulation else None
