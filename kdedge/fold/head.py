"""From an image encoder's features to logits: projector, L2 normalization, class vectors.

The projector's last linear layer, `scale` and the class vectors become one linear layer, the fused
head. L2 normalization divides an image's logits by a positive number: the head `scores` keeps the
division, the head `argmax` drops it.

With open classes there is no fused head. The model ends with the features, which have unit length
for the head `scores`; `scale` and the class vectors are in a separate file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.fold.linear import make_linear, with_batch_norm
from kdedge.methods.base import ImageModules, Projector
from kdedge.quantization.sites import FloatLinear
from kdedge.runtime.artifact import FEATURES_NAME, OUTPUT_NAME, Head, PixelType
from kdedge.runtime.preprocess import Preprocess

IN_CONVOLUTION = "in the first convolution"
MEAN_BEFORE = "mean before the first convolution, std in it"
BEFORE_CONVOLUTION = "before the first convolution"


@dataclass(frozen=True)
class FoldRequest:
    """The values that are folded into a student, and the form of the graph.

    Attributes:
        class_vectors: [C, D], unit length, in class-list order.
        scale: `logit_scale.exp()`.
        preprocess: its mean and std become part of the graph; resizing does not.
        head: `scores` keeps L2 normalization, `argmax` skips it.
        pixels: the graph takes 0-1 float or 0-255 uint8 pixels.
        open_classes: the graph's outputs are features; class vectors and `scale` are not folded in.
        offsets: [C], subtracted from the logits (`clip/logit_adjustment.py`), or None. With open
            classes, the constant 1 is appended to the features instead: see `artifacts.classes`.
    """

    class_vectors: Tensor
    scale: float
    preprocess: Preprocess
    head: Head = "scores"
    pixels: PixelType = "float"
    open_classes: bool = False
    offsets: Tensor | None = None


class HiddenLayers(nn.Module):
    """Several hidden layers of a projector, with ReLU between them but not after the last.

    Args:
        linears: the layers in order, with batch norm folded in.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, D_hidden]."""
        for index, linear in enumerate(self.linears):
            assert isinstance(linear, nn.Linear)
            if index > 0:
                features = F.relu(features)
            # Its `forward` is not called, so that exported nodes get the head's name
            features = F.linear(features, linear.weight, linear.bias)
        return features


class FoldedModel(nn.Module):
    """The exported model: pixels to logits, with all constants computed.

    A subclass adds the image encoder: it overrides `encode`. Linear layers follow it:

    * `hidden`, if the projector has hidden layers;
    * `fused_head`, from there to the logits; with open classes `features`, to the image features;
    * `features` beside `fused_head`, if logits are divided by the length of the image features.

    Args:
        modules: the parts after the encoder, frozen, in float32 on the CPU.
        request: class vectors, preprocessing and form of the graph.
        last: weight [D_student, D_encoded] and bias [D_student], float64, of the encoder's linear
            layer after `encode`; None if `encode` returns the student's features.

    Attributes:
        hidden: see above; None if it is left out.
        features: see above.
        fused_head: see above.
        head: `scores` gives the unfolded model's logits; `argmax` skips L2 normalization where
            that leaves the ranking unchanged.
        is_divided: whether outputs are divided by the length of the image features.
        pixels: the graph takes 0-1 float or 0-255 uint8 pixels.
        output_name: name of the graph's output.
        offsets: [C], subtracted after the division; None if there are none, or if the bias of
            `fused_head` contains them.
        appends_bias_feature: whether the constant 1 is appended to the features; the class vectors
            multiply it by minus the offsets.
        normalization: where the graph computes `(pixels - mean) / std`, in words.
    """

    normalization = IN_CONVOLUTION
    offsets: Tensor | None

    def __init__(
        self, modules: ImageModules, request: FoldRequest, last: tuple[Tensor, Tensor] | None
    ) -> None:
        super().__init__()
        self.head = request.head
        self.pixels = request.pixels
        self.output_name = FEATURES_NAME if request.open_classes else OUTPUT_NAME
        if last is None:
            n_features = request.class_vectors.shape[1]
            if modules.projector is not None:
                n_features = modules.projector.linears[0].in_features
            last = torch.eye(n_features).double(), torch.zeros(n_features).double()
        self.hidden, features = _fold_projector(modules.projector, *last)
        # Without offsets the division changes no ranking, so the head `argmax` leaves it out
        is_needed = request.head == "scores" or request.offsets is not None
        self.is_divided = modules.has_unit_length and is_needed
        self.features = features if self.is_divided or request.open_classes else None
        self.fused_head: nn.Linear | None = None
        self.appends_bias_feature = request.open_classes and request.offsets is not None
        self.register_buffer("offsets", None)
        if request.open_classes:
            return
        vectors = request.scale * request.class_vectors.double()
        bias = vectors @ features.bias.double()
        if request.offsets is not None and self.is_divided:
            self.offsets = request.offsets.float()
        elif request.offsets is not None:
            bias = bias - request.offsets
        self.fused_head = make_linear(
            vectors @ features.weight.double(),
            bias,
            nn.Linear if modules.has_unit_length else FloatLinear,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], uint8 or float 0-1 depending on `pixels`, -> [B, D_encoded]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], uint8 or float 0-1 depending on `pixels`, -> [B, C] or [B, D].

        These are logits, or features if classes are open.
        """
        hidden = self.encode(images)
        if self.hidden is not None:
            hidden = F.relu(self.hidden(hidden))
        outputs: Tensor | None = None if self.fused_head is None else self.fused_head(hidden)
        if self.features is not None:
            features: Tensor = self.features(hidden)
            outputs = features if outputs is None else outputs
            if self.is_divided:
                outputs = outputs / (features * features).sum(dim=-1, keepdim=True).sqrt()
        assert outputs is not None  # a model has at least one of the two
        if self.offsets is not None:
            outputs = outputs - self.offsets
        if self.appends_bias_feature:
            outputs = torch.cat([outputs, torch.ones_like(outputs[:, :1])], dim=1)
        return outputs


def _fold_projector(
    projector: Projector | None, weight: Tensor, bias: Tensor
) -> tuple[nn.Linear | HiddenLayers | None, nn.Linear]:
    """The hidden layers up to the last ReLU, or None, and the linear layer after them.

    Args:
        projector: see `ImageModules`.
        weight: [D_student, D_encoded], float64, of the linear layer before the projector.
        bias: [D_student], float64.
    """
    if projector is None:
        return None, make_linear(weight, bias)
    first, *others = projector.linears
    bias = first.weight.double() @ bias + first.bias.double()
    weight = first.weight.double() @ weight
    if not others:
        return None, make_linear(weight, bias)
    norm, *norms = projector.batch_norms
    hidden = [make_linear(*with_batch_norm(weight, bias, norm))]
    hidden += [
        make_linear(*with_batch_norm(linear.weight.double(), linear.bias.double(), norm))
        for linear, norm in zip(others[:-1], norms, strict=True)
    ]
    return hidden[0] if len(hidden) == 1 else HiddenLayers(hidden), others[-1]
