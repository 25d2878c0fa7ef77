"""VPT: deep visual prompts learned by cross-entropy; the texts are unchanged.

Paper: Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv:2203.12119, section 3.2, VPT-deep; on CLIP
as the baseline of MaPLe, arXiv:2210.03117, section 4.2.
"""

from __future__ import annotations

from functools import cached_property

import torch
from pydantic import Field
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.prompts import make_visual_prompts, readable
from kdedge.config.optim_spec import OptimSettings
from kdedge.methods.base import EncoderName, MethodInputs, MethodSettings
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import SupervisedMethod

METHOD = Declaration(
    label="VPT",
    paper="arXiv:2203.12119",
    data_needs=DataNeeds(labels=True),
    # MaPLe's code, base-to-novel.
    optim=OptimSettings(lr=0.0025, epochs=5, batch_size=4),
)


class Settings(MethodSettings):
    """Settings of VPT; defaults from MaPLe's code, base-to-novel."""

    n_ctx_vision: int = Field(
        8, ge=1, le=1000, description="Visual prompts in each prompted image layer."
    )
    prompt_depth: int = Field(
        12,
        ge=1,
        le=1000,
        description="Image layers with visual prompts of their own, from the first.",
    )
    context_init: str = Field(
        "a photo of a",
        description="Frozen words before the class name; the recipe's template is not used.",
    )

    @property
    def layer_counts(self) -> dict[str, tuple[EncoderName, ...]]:
        """Visual prompts alone: the setting counts the image encoder's layers."""
        return {"prompt_depth": ("image",)}


class Method(SupervisedMethod):
    """VPT on a frozen backbone."""

    module: nn.ParameterDict

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        visual_prompts = make_visual_prompts(
            backbone,
            n_ctx=settings.n_ctx_vision,
            prompt_depth=settings.prompt_depth,
            generator=inputs.generator,
        )
        self.module = nn.ParameterDict({"visual_prompts": visual_prompts})
        self._texts = [f"{settings.context_init} {readable(name)}." for name in inputs.class_names]
        self._train_classes = torch.tensor(inputs.train_classes, device=backbone.device)

    @cached_property
    def text_features(self) -> Tensor:
        """[C, D], unit length, frozen text features of all classes; computed at first use."""
        return unit_length(self._backbone.text_features_raw(self._texts))

    def visual_prompts(self) -> Tensor:
        """[prompt_depth, n_ctx_vision, D_vision]."""
        prompts: Tensor = self.module["visual_prompts"]
        return prompts

    def class_logits(self, image_features: Tensor) -> Tensor:
        """[B, D] -> [B, C], float32, over the training classes."""
        with torch.autocast(image_features.device.type, enabled=False):
            return self.scale * image_features @ self.text_features[self._train_classes].T

    def class_vectors(self) -> Tensor:
        """[C, D], the frozen text features."""
        return self.text_features
