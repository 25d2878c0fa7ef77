"""CoOp: learned context tokens in place of a template's words; the image encoder is unchanged.

Paper: Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, arXiv:2109.01134,
section 3.2: t = [V]_1 ... [V]_M [CLASS], p(y = i | x) = softmax_i(<w_i, f> / τ), w_i = g(t_i).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import INIT_STD, first_context, prompted_text_features, text_width
from kdedge.clip.text import TokenizedTexts
from kdedge.config.optim_spec import OptimSettings
from kdedge.errors import RecipeError
from kdedge.methods.base import MethodInputs, MethodSettings
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import TextPromptMethod

METHOD = Declaration(
    label="CoOp",
    paper="arXiv:2109.01134",
    data_needs=DataNeeds(labels=True),
    # The authors' code, 8 or 16 shots; 50 epochs on ImageNet.
    optim=OptimSettings(lr=0.002, epochs=200, batch_size=32),
)


class Settings(MethodSettings):
    """Settings of CoOp; defaults from the base-to-novel experiments (arXiv:2203.05557, 4.1)."""

    n_ctx: int = Field(
        4, ge=1, le=1000, description="Number of context tokens; 16 in CoOp's own experiments."
    )
    context_init: str = Field(
        "a photo of a",
        description="Words whose embeddings initialize the context; N(0, 0.02²) if they are few.",
    )
    class_specific: bool = Field(
        False,
        description="Train one context per class, which needs split: all, instead of one for all.",
    )

    @property
    def is_class_specific(self) -> bool:
        """True if each class has a context of its own."""
        return self.class_specific


def make_context(
    backbone: Backbone, settings: Settings, n_classes: int, generator: torch.Generator
) -> Tensor:
    """Initial values of the context: embeddings of words, equal for all classes, or N(0, 0.02²)."""
    n_words = len(backbone.tokenizer.encode(settings.context_init))
    if settings.class_specific and settings.n_ctx > n_words:
        shape = (n_classes, settings.n_ctx, text_width(backbone))
        return (INIT_STD * torch.randn(shape, generator=generator)).to(backbone.device)
    context = first_context(
        backbone, n_ctx=settings.n_ctx, context_init=settings.context_init, generator=generator
    )
    return context.repeat(n_classes, 1, 1) if settings.class_specific else context


class Method(TextPromptMethod):
    """CoOp on a frozen backbone.

    Its parameter is `context`: [n_ctx, D_text], [V]_1 ... [V]_M shared by all classes, or
    [C, n_ctx, D_text], class-specific.
    """

    module: nn.ParameterDict

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        class_names = inputs.class_names
        train_names = inputs.train_names
        if settings.class_specific and train_names != list(class_names):
            raise RecipeError(
                "class_specific trains one context per class, but"
                f" {len(class_names) - len(train_names)} of {len(class_names)} classes are not"
                " trained.\n"
                "  Set class_specific: false, or data.split: all."
            )
        super().__init__(backbone, settings, inputs)
        context = make_context(backbone, settings, len(class_names), inputs.generator)
        self.module = nn.ParameterDict({"context": context})

    def text_features(self, texts: TokenizedTexts) -> Tensor:
        """[C, D], unit length, with gradients; encoded in chunks of classes to save memory."""
        return prompted_text_features(self._backbone, texts, self.module["context"])
