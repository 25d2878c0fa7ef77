"""A student with a folded, compressed image encoder, which is trained like any other."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdedge.clip.image_backbone import count_features
from kdedge.compression.quantizers import learn_int8
from kdedge.compression.sparsity import can_be_sparse, is_sparse, keep_zeros, zero_smallest
from kdedge.config.recipe import StudentSpec
from kdedge.errors import RecipeError
from kdedge.fold import FoldedModel, fold
from kdedge.fold.layers import inner_layers
from kdedge.fold.tower import release_layers
from kdedge.methods.protocol import ImagePath, Method, TakesEncoder
from kdedge.quantization.fake import HIGHEST, attached
from kdedge.quantization.ranges import find_range
from kdedge.runtime.preprocess import Preprocess
from kdedge.targets.onnx.graph import MIN_CHANNELS


@dataclass(frozen=True)
class Layers:
    """The linear layers and convolutions of a compressed encoder, by what was done to them.

    Attributes:
        sparse: with 2:4 zeros.
        quantized: with INT8 values.
        untouched: the others, such as the first convolution and the last linear layer, which an
            export folds into the head.
    """

    sparse: tuple[str, ...]
    quantized: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        done = {"get 2:4 zeros": self.sparse, "are quantized to INT8": self.quantized}
        parts = [f"{len(names)} layers {what}" for what, names in done.items() if names]
        return f"{', '.join(parts)}; as they are: {', '.join(self.untouched)}"

    def to_dict(self) -> dict[str, list[str]]:
        """Values for JSON."""
        return {
            "sparse": list(self.sparse),
            "quantized": list(self.quantized),
            "untouched": list(self.untouched),
        }


@dataclass(frozen=True)
class Compression:
    """How a student's image encoder is compressed.

    Attributes:
        is_sparse: whether its layers have 2:4 zeros.
        is_quantized: whether its layers compute with INT8 values.
        preprocess: the preprocessing of its images.
    """

    is_sparse: bool
    is_quantized: bool
    preprocess: Preprocess

    def apply(self, method: Method, images: Tensor | None = None) -> Method:
        """Folds a student's image encoder and compresses its layers, from their current weights.

        Args:
            method: plain or compressed; it is not changed.
            images: [N, 3, S, S], normalized, which give the first scales of INT8 inputs; None if
                trained scales will be loaded.

        Returns:
            The same student with the compressed encoder, all of which is trained.

        Raises:
            RecipeError: the method's image encoder cannot be replaced, or no layer can be
                compressed.
        """
        if not isinstance(method, TakesEncoder):
            raise RecipeError(
                f"student.sparsity and student.quantize need a method whose image encoder can be"
                f" folded, but {type(method).__module__.rpartition('.')[2]} has no with_encoder.\n"
                "  Use student.method: promptkd."
            )
        path = method.image_path()
        device = next(path.visual.parameters()).device
        encoder = fold_encoder(path, self.preprocess).to(device)
        layers = inner_layers(encoder, self.preprocess.size_px)
        scales = dict.fromkeys(layers, 1.0)
        if images is not None and self.is_quantized:
            scales = _input_scales(encoder, layers, images)
        masks = {
            name: zero_smallest(layer)
            for name, layer in layers.items()
            if self.is_sparse and can_be_sparse(layer)
        }
        for name, layer in layers.items():
            if self.is_quantized:
                learn_int8(layer, scales[name])
            if name in masks:
                keep_zeros(layer, masks[name])
        if not masks and not (self.is_quantized and layers):
            raise RecipeError(
                "This image encoder has no layer that can be compressed: neither a linear layer on"
                f" tokens nor a convolution over {MIN_CHANNELS} or more channels"
                f"{', of a width that is divisible by 4' if self.is_sparse else ''}.\n"
                "  Leave student.sparsity and student.quantize out."
            )
        return method.with_encoder(encoder.requires_grad_(True).to(device))

    def layers(self, method: Method) -> Layers:
        """Names the layers of a compressed student's encoder."""
        visual = method.image_path().visual
        found = {
            name: module
            for name, module in visual.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        sparse = [name for name, module in found.items() if is_sparse(module)]
        quantized = list(attached(visual))
        untouched = [name for name in found if name not in {*sparse, *quantized}]
        return Layers(tuple(sparse), tuple(quantized), tuple(untouched))


@torch.no_grad()
def _input_scales(
    encoder: FoldedModel, layers: Mapping[str, nn.Module], images: Tensor
) -> dict[str, float]:
    """The best scale of each layer's input on some images."""
    scales: dict[str, float] = {}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        largest = float(inputs[0].abs().max())
        scales[name] = find_range(inputs[0], "mse", largest=largest) / HIGHEST

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, layer in layers.items()
    ]
    try:
        encoder(images)
    finally:
        for hook in hooks:
            hook.remove()
    return scales


def compression_of(spec: StudentSpec | None, preprocess: Preprocess) -> Compression | None:
    """The compression that a recipe's student asks for; None for a plain student."""
    if spec is None or not spec.compression:
        return None
    return Compression(spec.sparsity is not None, spec.quantize is not None, preprocess)


def fold_encoder(path: ImagePath, preprocess: Preprocess) -> FoldedModel:
    """A student's image encoder, from normalized images to [B, D_student], with plain layers.

    Prompts are folded into it. It shares no tensor with `path`.
    """
    if isinstance(path.visual, FoldedModel):
        folded = copy.deepcopy(path.visual)
        release_layers(folded)
        return folded.float().cpu().eval().requires_grad_(False)
    path = replace(path, projector=None)
    dim = count_features(path.visual, "The image encoder", preprocess.size_px)
    normalized = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    # Class vectors that are the axes of the feature space make the features the "logits"
    return fold(path, torch.eye(dim), scale=1.0, preprocess=normalized, head="argmax")
