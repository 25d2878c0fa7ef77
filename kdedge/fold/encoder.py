"""The exact folds of any image encoder other than CLIP's ViT.

- Re-parameterizable blocks (RepVGG, MobileOne, FastViT, LeViT and others) become one convolution or
  linear layer by their own methods, as timm's `reparameterize_model` calls them.
- Convolutions that standardize their weights at each call get the standardized weights.
- Batch norms move into the convolution or linear layer before them.
- `(pixels - mean) / std` moves into the first convolution. Zero padding commutes with a division,
  not with a subtraction: a padded convolution takes the standard deviation into its weights, and
  the mean is subtracted before it.
- The encoder's last linear layer moves into the linear layer after it.
- Attention is computed by plain matrix products, which converters know.
- Pooling by attention with one constant query: see `pooling`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from open_clip.transformer import VisionTransformer
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdedge.clip.blocks import make_wrappable
from kdedge.fold.head import (
    BEFORE_CONVOLUTION,
    IN_CONVOLUTION,
    MEAN_BEFORE,
    FoldedModel,
    FoldRequest,
)
from kdedge.fold.linear import fold_pixels, pixel_statistics, plain_weight_and_bias, with_batch_norm
from kdedge.fold.pooling import fold_pooling
from kdedge.methods.base import ImageModules
from kdedge.quantization.sites import FloatLinear


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of an operator.

    Attributes:
        operator: torch's name: aten.convolution.default.
        arguments: the operator's arguments, in order.
        inputs: the tensors among the arguments.
        outputs: the tensors that it returns.
    """

    operator: str
    arguments: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, with arguments input, weight, bias, stride, padding..."""
        return self.operator == "aten.convolution.default"


class ModuleCall(NamedTuple):
    """One call of a module, with its first argument and its output."""

    module: Any
    input: object
    output: object


@dataclass(frozen=True, eq=False)
class RecordedCalls:
    """One run of an image encoder.

    Attributes:
        images: the encoder's input.
        features: the encoder's output.
        calls: the calls of its modules, in the order in which they ended.
        operations: all operators that it calls, in order.
    """

    images: Tensor
    features: Tensor
    calls: Sequence[ModuleCall]
    operations: Sequence[Operation]

    def single_calls(self) -> list[ModuleCall]:
        """The calls of modules that were called exactly once."""
        counts = Counter(id(call.module) for call in self.calls)
        return [call for call in self.calls if counts[id(call.module)] == 1]

    def readers(self, tensor: object) -> list[Operation]:
        """The operations that read a tensor."""
        return [
            operation
            for operation in self.operations
            if any(source is tensor for source in operation.inputs)
        ]


@torch.no_grad()
def observe(encoder: nn.Module, images: Tensor) -> RecordedCalls:
    """Runs an encoder on images [B, 3, H, W] and records its calls and operations."""
    calls: list[ModuleCall] = []

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        calls.append(ModuleCall(module, inputs[0] if inputs else None, output))

    hook = register_module_forward_hook(record)
    try:
        with _Recorder() as recorder:
            features = encoder(images)
    finally:
        hook.remove()
    return RecordedCalls(images, features, calls, recorder.operations)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        output = func(*args, **(kwargs or {}))
        self.operations.append(
            Operation(str(func), tuple(args), _tensors((args, kwargs)), _tensors(output))
        )
        return output


def _tensors(tree: object) -> tuple[Tensor, ...]:
    """The tensors in nested arguments or results."""
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


_PLAIN_CONVS = (nn.Conv2d, Conv2dSame)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)


class FoldedEncoder(FoldedModel):
    """An image encoder, from pixels to logits.

    Args:
        modules: frozen, in float32 on the CPU; its encoder, [B, 3, H, W] -> [B, D_student], is
            changed.
        request: class vectors, preprocessing and form of the graph.
    """

    mean: Tensor | None
    gain: Tensor | None

    def __init__(self, modules: ImageModules, request: FoldRequest) -> None:
        encoder = modules.visual
        _simplify(encoder)
        size_px = request.preprocess.size_px
        images = torch.zeros(1, 3, size_px, size_px)
        # Each step replaces modules, so that the next one has to look again
        _fold_weights(encoder, observe(encoder, images))
        _fold_batch_norms(encoder, observe(encoder, images))
        observed = observe(encoder, images)
        super().__init__(modules, request, _take_last_linear(encoder, observed))
        mean, std = pixel_statistics(request.preprocess, request.pixels)
        self.normalization = _fold_into_stem(observed, request)
        is_inside = self.normalization == IN_CONVOLUTION
        self.register_buffer("mean", None if is_inside else mean.float())
        is_outside = self.normalization == BEFORE_CONVOLUTION
        self.register_buffer("gain", (1 / std).float() if is_outside else None)
        self.encoder = encoder

    def encode(self, images: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], uint8 or float 0-1 depending on `pixels`, -> [B, D_encoded]."""
        images = images.to(next(self.encoder.parameters()).dtype)
        if self.mean is not None:
            images = images - self.mean
        if self.gain is not None:
            images = images * self.gain
        encoded: Tensor = self.encoder(images)
        head = self.features if self.fused_head is None else self.fused_head
        assert head is not None  # open classes have features
        # A head inside another fold has no parameters
        return encoded.to(next(head.parameters(), encoded).dtype)


def _simplify(encoder: nn.Module) -> None:
    """Replaces blocks in place by fewer and plainer layers with the same outputs."""
    if isinstance(encoder, VisionTransformer):
        make_wrappable(encoder.transformer)
    # In float64, since the blocks' own methods add up weights
    reparameterize_model(encoder.double(), inplace=True)
    encoder.float().train()  # drops tensors that some blocks cache in evaluation mode
    encoder.eval().requires_grad_(False)
    modules: list[Any] = list(encoder.modules())
    for module in modules:
        if getattr(module, "fused_attn", False):
            module.fused_attn = False
        pooling = fold_pooling(module)
        if pooling is not None:
            _replace(encoder, module, pooling)


def _replace(encoder: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replaces a module wherever the encoder holds it."""
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def _fold_weights(encoder: nn.Module, observed: RecordedCalls) -> None:
    """Replaces convolutions that compute their weights from parameters by plain convolutions."""
    image_dependent = {id(observed.images)}
    for step in observed.operations:
        if any(id(tensor) in image_dependent for tensor in step.inputs):
            image_dependent.update(id(output) for output in step.outputs)
    by_output = {id(call.outputs[0]): call for call in observed.operations if call.is_convolution}
    for module, values, output in observed.single_calls():
        operation = by_output.get(id(output))
        if not isinstance(module, nn.Conv2d) or type(module) in _PLAIN_CONVS or operation is None:
            continue
        source, weight, bias, stride, padding, dilation, *_, groups = operation.arguments
        if source is not values or {id(weight), id(bias)} & image_dependent:
            continue
        conv = nn.Conv2d(
            in_channels=weight.shape[1] * groups,
            out_channels=len(weight),
            kernel_size=weight.shape[2:],
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias is not None,
        )
        conv.weight.copy_(weight)
        if conv.bias is not None:
            conv.bias.copy_(bias)
        _replace(encoder, module, conv)


def _fold_batch_norms(encoder: nn.Module, observed: RecordedCalls) -> None:
    """Folds a batch norm into the layer before it, if nothing else reads its output or weight."""
    layers = {id(call.output): call.module for call in observed.single_calls() if _is_linear(call)}
    for norm, values, _ in observed.single_calls():
        layer = layers.get(id(values))
        if layer is None or type(norm) not in _BATCH_NORMS or norm.running_mean is None:
            continue
        if len(observed.readers(values)) != 1 or len(observed.readers(layer.weight)) != 1:
            continue
        weight, bias = with_batch_norm(*plain_weight_and_bias(layer), norm)
        _set_weight_and_bias(layer, weight, bias)
        _replace(encoder, norm, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())


def _is_linear(call: ModuleCall) -> bool:
    """Whether each row of the module's weight gives one channel of the output, linearly."""
    if type(call.module) in _PLAIN_CONVS:
        return True
    is_vector = isinstance(call.output, Tensor) and call.output.ndim == 2
    return type(call.module) is nn.Linear and is_vector


def _set_weight_and_bias(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Sets float32 values as a layer's frozen weight and bias."""
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)


def _take_last_linear(encoder: nn.Module, observed: RecordedCalls) -> tuple[Tensor, Tensor] | None:
    """Removes the linear layer whose output is the features; its weight and bias, in float64."""
    for module, _, output in observed.single_calls():
        if output is observed.features and type(module) in (nn.Linear, FloatLinear):
            _replace(encoder, module, nn.Identity())
            return plain_weight_and_bias(module)
    return None


def _fold_into_stem(observed: RecordedCalls, request: FoldRequest) -> str:
    """Folds mean and standard deviation into the first convolution, as far as that is exact."""
    readers = observed.readers(observed.images)
    for conv, values, _ in observed.single_calls():
        if values is not observed.images or type(conv) not in _PLAIN_CONVS:
            continue
        if len(readers) != 1 or conv.padding_mode != "zeros" or conv.groups != 1:
            break
        if len(observed.readers(conv.weight)) != 1:
            break
        folded, shift = fold_pixels(conv, request.preprocess, request.pixels)
        _, bias = plain_weight_and_bias(conv)
        # Unless it is a plain convolution, the operation may pad
        may_pad = any(readers[0].arguments[4]) if readers[0].is_convolution else True
        if may_pad and any(request.preprocess.mean):  # zeros beside the image are not the mean
            _set_weight_and_bias(conv, folded.weight, bias)
            return MEAN_BEFORE
        _set_weight_and_bias(conv, folded.weight, bias + shift)
        return IN_CONVOLUTION
    return BEFORE_CONVOLUTION
