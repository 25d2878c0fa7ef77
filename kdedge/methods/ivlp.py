"""IVLP: independent text and visual prompts in both towers, learned by cross-entropy.

Papers: the independent V-L prompting of Khattak et al., MaPLe, CVPR 2023, arXiv:2210.03117, section
4.2, and the baseline of Khattak et al., Self-regulating Prompts, ICCV 2023, arXiv:2307.06948,
section 3.1, whose convention `clip.text` and `clip.vision` describe. Differs from the authors'
code: the text tower runs over no more positions than the longest prompt, and weights stay in
float32 under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import (
    TextPrompts,
    make_text_prompts,
    make_visual_prompts,
    prompted_text_features,
    prompted_texts,
)
from kdedge.clip.text import TokenizedTexts
from kdedge.config.recipe import OptimSpec
from kdedge.data.batch import Batch
from kdedge.methods._protocol import ImagePath, MethodSettings, StepOutput, Teacher
from kdedge.methods._supervised import cross_entropy_step, labels_of

OPTIM = OptimSpec(lr=0.0025, epochs=20, batch_size=4)
"""PromptSRC's code, base-to-novel; MaPLe's code: lr 0.0035, 5 epochs, batch_size 4."""


class Settings(MethodSettings):
    """Settings of IVLP; defaults from PromptSRC's code (MaPLe's: 2 + 2, depth 12)."""

    n_ctx_text: int = Field(4, ge=1, description="Context tokens in each prompted text layer.")
    n_ctx_vision: int = Field(4, ge=1, description="Visual prompts in each prompted image layer.")
    prompt_depth_text: int = Field(
        9, ge=1, description="Text layers that get tokens of their own, from the first."
    )
    prompt_depth_vision: int = Field(
        9, ge=1, description="Image layers that get prompts of their own, from the first."
    )
    context_init: str = Field(
        "a photo of a", description="Words whose embeddings the context starts from."
    )


class PromptedCLIP(nn.Module):
    """The parameters of IVLP: text prompts and visual prompts."""

    def __init__(self, text_prompts: TextPrompts, visual_prompts: nn.Parameter) -> None:
        super().__init__()
        self.text_prompts = text_prompts
        self.visual_prompts = visual_prompts


class Method:
    """IVLP on a frozen backbone."""

    needs_labels: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        module: PromptedCLIP,
        *,
        texts: TokenizedTexts,
        train_texts: TokenizedTexts,
    ) -> None:
        self.scale = backbone.scale
        self.module = module
        self._backbone = backbone
        self._texts = texts
        self._train_texts = train_texts

    @classmethod
    def build(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        settings: Settings,
        *,
        template: str,
        train_classes: Sequence[int],
        teacher: Teacher | None,
        generator: torch.Generator,
    ) -> Method:
        """See `methods._protocol.Method.build`; texts are "<context> NAME.", not the template."""
        n_ctx, init = settings.n_ctx_text, settings.context_init
        train_names = [class_names[index] for index in train_classes]
        texts = prompted_texts(backbone, class_names, n_ctx=n_ctx, context_init=init)
        train_texts = prompted_texts(backbone, train_names, n_ctx=n_ctx, context_init=init)
        text_prompts = make_text_prompts(
            backbone,
            n_ctx=n_ctx,
            prompt_depth=settings.prompt_depth_text,
            context_init=init,
            generator=generator,
        )
        visual_prompts = make_visual_prompts(
            backbone,
            n_ctx=settings.n_ctx_vision,
            prompt_depth=settings.prompt_depth_vision,
            generator=generator,
            setting="prompt_depth_vision",
        )
        module = PromptedCLIP(text_prompts, visual_prompts)
        return cls(backbone, module, texts=texts, train_texts=train_texts)

    def text_features(self, texts: TokenizedTexts) -> Tensor:
        """[C, D], unit length, with gradients in the memory of one chunk of classes."""
        return prompted_text_features(self._backbone, texts, self.module.text_prompts)

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], float32, over the training classes."""
        image_features = self._backbone.image_features(images, self.module.visual_prompts)
        text_features = self.text_features(self._train_texts)
        with torch.autocast(images.device.type, enabled=False):
            return self.scale * image_features @ text_features.T

    def training_step(self, batch: Batch) -> StepOutput:
        """Cross-entropy on labeled images."""
        labels = labels_of(batch, "ivlp")
        return cross_entropy_step(self.logits(batch.images), labels)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """All prompts."""
        return dict(self.module.named_parameters())

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """Nothing is averaged."""
        return None

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """[C, D], text features of all classes under the prompts as they are now."""
        return self.text_features(self._texts)

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D] through the prompted image tower."""
        return self._backbone.image_features(images, self.module.visual_prompts)

    def image_path(self) -> ImagePath:
        """The prompted image tower."""
        return ImagePath(self._backbone.model.visual, self.module.visual_prompts)
