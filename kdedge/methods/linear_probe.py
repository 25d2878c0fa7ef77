"""Linear probe: a linear classifier on the features of a frozen image encoder.

Paper: Radford et al., CLIP, arXiv:2103.00020, section 3.2; batch norm without scale and shift
before the linear layer as in He et al., arXiv:2111.06377, appendix A.1, so that one learning rate
suits encoders whose features differ in size.
Differs from CLIP's: stochastic gradients with weight decay in place of L-BFGS.

The encoder needs no texts: a timm model, such as timm/resnet50.tv_in1k with torchvision's weights,
or the image encoder of any CLIP.

Under base-to-novel it is trained on the base classes and abstains on the others: it gives them a
logit so low that their probability is exactly 0, so its novel accuracy is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import unit_length
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.vision import encode_image
from kdedge.config.recipe import OptimSpec
from kdedge.data.batch import Batch
from kdedge.errors import DataError
from kdedge.methods._encode import encode_images
from kdedge.methods.protocol import ImagePath, MethodSettings, StepOutput, Teacher
from kdedge.methods.registry import Declaration, Sees
from kdedge.methods.supervised import cross_entropy_step, labels_of

METHOD = Declaration(
    label="Linear probe",
    paper="arXiv:2103.00020",
    sees=Sees(labels=True),
    # Ours: the papers' schedules are for many thousand images a class
    optim=OptimSpec(lr=0.01, epochs=20, batch_size=32),
)

IMPOSSIBLE = -1e4
"""Logit of a class that it was not trained on: its softmax in float32 is 0."""


class Settings(MethodSettings):
    """The linear probe has none."""

    @property
    def is_class_specific(self) -> bool:
        """See `MethodSettings.is_class_specific`: a row of the classifier belongs to one class."""
        return True

    @property
    def needs_texts(self) -> bool:
        """See `MethodSettings.needs_texts`."""
        return False


class Probe(nn.Module):
    """Batch norm without scale and shift, then a linear layer that starts at 0.

    Args:
        embed_dim: D.
        n_classes: n.
    """

    def __init__(self, embed_dim: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embed_dim, affine=False)
        self.linear = nn.Linear(embed_dim, n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D], unit length -> [B, n]."""
        logits: Tensor = self.linear(self.norm(features))
        return logits


class Method:
    """A linear probe on a frozen backbone, which may have no text encoder."""

    why_no_class_vectors = "classifies by a linear layer"
    can_split_batches: ClassVar[bool] = True

    def __init__(
        self, backbone: AnyBackbone, module: Probe, *, n_classes: int, known: Sequence[int]
    ) -> None:
        self.scale = 1.0
        self.module = module
        self._visual = backbone.visual
        self._n_classes, self._known = n_classes, tuple(known)

    @classmethod
    def build(
        cls,
        backbone: AnyBackbone,
        class_names: Sequence[str],
        settings: Settings,
        *,
        template: str,
        train_classes: Sequence[int],
        teacher: Teacher | None,
        generator: torch.Generator,
    ) -> Method:
        """See `methods.protocol.Method.build`; no text is read and nothing is drawn."""
        module = Probe(backbone.embed_dim, len(train_classes)).to(backbone.device)
        return cls(backbone, module, n_classes=len(class_names), known=train_classes)

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length."""
        return unit_length(encode_image(self._visual, images))

    def training_step(self, batch: Batch) -> StepOutput:
        """Cross-entropy with the labels [B], averaged over images or with the batch's weights."""
        labels = labels_of(batch)
        if batch.n_images < 2:
            raise DataError(
                "linear_probe needs at least 2 labeled images in a batch (batch norm has no"
                " variance over one).\n  Raise batch_size."
            )
        features = encode_images(batch, self.forward_features)
        with torch.autocast(features.device.type, enabled=False):
            logits = self.module(features.float())
        return cross_entropy_step(logits, labels, batch.weights)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """See `methods.protocol.HasClassifier`; batch norm with its running statistics.

        `IMPOSSIBLE` for classes that it was not trained on.
        """
        norm = self.module.norm
        with torch.autocast(features.device.type, enabled=False):
            normed = F.batch_norm(
                features.float(), norm.running_mean, norm.running_var, eps=norm.eps
            )
            known: Tensor = self.module.linear(normed)
        columns = torch.tensor(self._known, device=known.device)
        return known.new_full((len(known), self._n_classes), IMPOSSIBLE).index_copy(
            1, columns, known
        )

    def own_logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], float32."""
        return self.classify(self.forward_features(images))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The linear layer's; batch norm has buffers alone."""
        return dict(self.module.named_parameters())

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """None: nothing is averaged."""
        return None

    def class_vectors(self) -> Tensor:
        """[C, 0]: a class is a row of the classifier, not a vector of unit length."""
        return self.module.linear.weight.new_zeros(self._n_classes, 0)

    def image_path(self) -> ImagePath:
        """The unchanged image encoder."""
        return ImagePath(self._visual)
