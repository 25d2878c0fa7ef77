"""PromptSRC: text and visual prompts, kept near the frozen CLIP by three losses and averaging.

Paper: Khattak et al., Self-regulating Prompts, ICCV 2023, arXiv:2307.06948, section 3.2 and
equations 3 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, reduce

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.prompts import readable
from kdedge.config.optim_spec import OptimSettings
from kdedge.loading.batch import Batch
from kdedge.methods import ivlp
from kdedge.methods.base import StepOutput
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import cross_entropy, encode_images, labels_of

METHOD = Declaration(
    label="PromptSRC",
    paper="arXiv:2307.06948",
    data_needs=DataNeeds(labels=True),
    # The authors' code, base-to-novel, ViT-B/16.
    optim=OptimSettings(lr=0.0025, epochs=20, batch_size=4),
)


class Settings(ivlp.Settings):
    """Settings of PromptSRC besides IVLP's; defaults from the authors' base-to-novel runs."""

    text_loss_weight: float = Field(
        25.0,
        ge=0,
        le=1e6,
        description="Weight of the text features' L1 distance to the frozen ones.",
    )
    image_loss_weight: float = Field(
        10.0,
        ge=0,
        le=1e6,
        description="Weight of the image features' L1 distance to the frozen ones.",
    )
    logit_loss_weight: float = Field(
        1.0, ge=0, le=1e6, description="Weight of the divergence from zero-shot to prompted logits."
    )
    averaging_mean_epoch: float = Field(
        15.0,
        ge=-1e6,
        le=1e6,
        description="Epoch (from 1) with the largest weight in the average of the prompts.",
    )
    averaging_std_epochs: float = Field(
        1.0,
        ge=0.001,
        le=1e6,
        description="Standard deviation of the averaging weights, in epochs.",
    )
    n_anchor_templates: int = Field(
        60,
        ge=1,
        le=80,
        description="OpenAI's ImageNet templates, from the first, for the frozen text features.",
    )


def gaussian_weights(n_epochs: int, *, mean_epoch: float, std_epochs: float) -> list[float]:
    """Gaussian prompt averaging: exp(-(e - mean)² / (2 std²)), e = 1 … n_epochs, summing to 1.

    Source: section 3.2.2.
    """
    # Relative to the largest exponent, so that a mean far outside of the run does not give 0 / 0.
    exponents = [
        -((epoch - mean_epoch) ** 2) / (2 * std_epochs**2) for epoch in range(1, n_epochs + 1)
    ]
    values = [math.exp(exponent - max(exponents)) for exponent in exponents]
    return [value / sum(values) for value in values]


def text_anchor(backbone: Backbone, class_names: Sequence[str], n_templates: int) -> Tensor:
    """[C, D]: raw text features averaged over templates, then normalized (the authors' code).

    Normalizing each template's features first, as CLIP's ensemble does, gives another anchor.
    """
    raw = [
        backbone.text_features_raw([make(readable(name)) for name in class_names])
        for make in OPENAI_IMAGENET_TEMPLATES[:n_templates]
    ]
    return unit_length(torch.stack(raw).mean(dim=0))


class Method(ivlp.Method):
    """PromptSRC on a frozen backbone: IVLP's prompts under other losses, averaged over epochs."""

    _settings: Settings

    @cached_property
    def anchor(self) -> Tensor:
        """[C, D], the frozen text anchor of the training classes; computed at first use."""
        return text_anchor(
            self._backbone, self._inputs.train_names, self._settings.n_anchor_templates
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of a batch, whose sum is equation 8.

        Returns:
            The terms `cross_entropy`, `text`, `image` and `logit`, float32 scalars with their
            weights applied. The divergence from zero-shot to prompted logits is summed over images
            and classes and divided by B · C, as in the authors' code, so that one image weighs
            1 / C.
        """
        settings = self._settings
        scale = self.scale
        labels = labels_of(batch)
        with torch.no_grad():
            zeroshot_image_features = encode_images(batch, self._backbone.image_features)
        image_features = encode_images(batch, self.training_features)
        text_features = self.text_features(self._train_texts)
        with torch.autocast(labels.device.type, enabled=False):
            logits = scale * image_features @ text_features.T
            zeroshot_logits = scale * zeroshot_image_features @ self.anchor.T
            divergence = F.kl_div(
                logits.log_softmax(dim=-1),
                zeroshot_logits.log_softmax(dim=-1),
                reduction="sum",
                log_target=True,
            )
            text_distance = F.l1_loss(text_features, self.anchor)
            image_distance = F.l1_loss(image_features, zeroshot_image_features)
            return {
                "cross_entropy": cross_entropy(logits, labels, batch.weights),
                "text": settings.text_loss_weight * text_distance,
                "image": settings.image_loss_weight * image_distance,
                "logit": settings.logit_loss_weight * divergence / logits.numel(),
            }

    def training_step(self, batch: Batch) -> StepOutput:
        """The sum of the four terms on labeled images."""
        losses = self.losses(batch)
        scalars = {f"loss_{name}": loss.detach() for name, loss in losses.items()}
        return StepOutput(reduce(torch.add, losses.values()), scalars)

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """Weights of Gaussian prompt averaging (section 3.2.2); only prompts are trained."""
        return gaussian_weights(
            n_epochs,
            mean_epoch=self._settings.averaging_mean_epoch,
            std_epochs=self._settings.averaging_std_epochs,
        )
