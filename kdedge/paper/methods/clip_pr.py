"""CLIP-PR: an adapter learns zero-shot CLIP's predictions, under a prior over the labels.

Paper: Kahana et al., Improving Zero-Shot Models with Label Distribution Priors (CLIPPR), 2022,
arXiv:2212.00784. The method changes CLIP's predictions little, and brings the mean prediction close
to a prior over the labels. L = CE(g(f), y) + w · KL(prior ‖ mean softmax g(f)), with f the
unit-length image feature (frozen), g the adapter, y zero-shot CLIP's prediction for the same view
and w a weight.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.logit_adjustment import class_shares
from kdedge.clip.prompts import random_linear, readable
from kdedge.clip.text import in_chunks
from kdedge.config.optim_spec import OptimSettings
from kdedge.loading.batch import Batch
from kdedge.methods.base import BaseMethod, Classifier, MethodInputs, MethodSettings, StepOutput
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.supervised import encode_images

METHOD = Declaration(
    label="CLIP-PR",
    paper="arXiv:2212.00784",
    data_needs=DataNeeds(unlabeled_images=True, novel_class_names=True),
    # The authors' code on CIFAR-10, except that one batch here is four of its batches of 128.
    optim=OptimSettings(
        algorithm="adamw",
        lr=0.001,
        weight_decay=3e-4,
        epochs=70,
        batch_size=512,
        warmup_epochs=0,
        crop_scale_min=1.0,
    ),
)


class Settings(MethodSettings):
    """Settings of CLIP-PR; defaults from the authors' code for classification."""

    n_hidden: int = Field(
        128, ge=1, le=65_536, description="Width of the adapter's two hidden layers."
    )
    prior_weight: float = Field(
        100.0,
        ge=0,
        le=1e6,
        description="Weight of the divergence of the mean prediction from the prior.",
    )
    prior: dict[str, Annotated[float, Field(gt=0, le=1e9)]] | None = Field(
        None,
        description="Relative frequency of each class, in any unit, by name: {cat: 3, dog: 1}."
        " Default: all classes are equally frequent.",
    )

    classifier: ClassVar[Classifier] = "own_logits"  # the adapter computes the logits
    is_class_specific: ClassVar[bool] = True  # the adapter has one output per class


class Adapter(nn.Module):
    """Image features to logits: two hidden layers with leaky ReLU, a linear layer without bias.

    Args:
        embed_dim: D.
        n_hidden: width of both hidden layers.
        n_classes: C.
        generator: on the CPU; draws PyTorch's default values.
    """

    def __init__(
        self, embed_dim: int, n_hidden: int, n_classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.linear1 = random_linear(embed_dim, n_hidden, generator)
        self.linear2 = random_linear(n_hidden, n_hidden, generator)
        self.linear3 = random_linear(n_hidden, n_classes, generator, bias=False)

    def forward(self, image_features: Tensor) -> Tensor:
        """[B, D], unit length -> [B, C]."""
        hidden = F.leaky_relu(self.linear1(image_features))
        logits: Tensor = self.linear3(F.leaky_relu(self.linear2(hidden)))
        return logits


def prior_divergence(logits: Tensor, prior: Tensor) -> Tensor:
    """KL(prior ‖ p), with p the softmax of the logits averaged over the images.

    Args:
        logits: [B, C], float32.
        prior: [C], above 0, adds up to 1.

    Returns:
        A scalar, at least 0.
    """
    log_mean = logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))
    return (prior * (prior.log() - log_mean)).sum()


class Method(BaseMethod):
    """CLIP-PR on a frozen backbone, over all classes.

    Raises:
        RecipeError: the prior does not name exactly the classes of the class list.
    """

    _backbone: Backbone

    def __init__(self, backbone: Backbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        names = inputs.class_names
        n_hidden = settings.n_hidden
        shares = class_shares(settings.prior, names, "settings.prior")
        self._prior = shares.float().to(backbone.device)
        module = Adapter(backbone.embed_dim, n_hidden, len(names), inputs.generator)
        self.module = module.to(backbone.device)
        self._texts = [inputs.template.format(readable(name)) for name in names]

    @cached_property
    def text_features(self) -> Tensor:
        """[C, D], unit length, of zero-shot CLIP; computed at first use."""
        return unit_length(self._backbone.text_features_raw(self._texts))

    def training_step(self, batch: Batch) -> StepOutput:
        """The loss on unlabeled views; pseudo-labels are predicted from the same views."""
        image_features = encode_images(batch, self.forward_features)
        with torch.autocast(batch.images.device.type, enabled=False):
            pseudo_labels = (image_features @ self.text_features.T).argmax(dim=-1)
            logits = self.module(image_features)
            cross_entropy = F.cross_entropy(logits, pseudo_labels)
            divergence = prior_divergence(logits, self._prior)
        agreement = 100 * (logits.detach().argmax(dim=-1) == pseudo_labels).float().mean()
        return StepOutput(
            cross_entropy + self._settings.prior_weight * divergence,
            {
                "loss_cross_entropy": cross_entropy.detach(),
                "prior_divergence": divergence.detach(),
                "zeroshot_agreement_percent": agreement,
            },
        )

    @torch.no_grad()
    def own_logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], the adapter's logits."""
        logits: Tensor = self.module(self.forward_features(images))
        return logits

    def class_vectors(self) -> Tensor:
        """[C, 0]: there are none."""
        return torch.zeros(len(self._texts), 0, device=self._backbone.device)

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], frozen; encoded in chunks to save memory."""
        return in_chunks(lambda rows: self._backbone.image_features(images[rows]), len(images))
