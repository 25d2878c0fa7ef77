"""Fake quantization: a torch model that computes with INT8 values, as a graph with Q/DQ does.

A quantizer gives `levels * scale` with `levels = round(x / scale)`, half to even and saturated,
which is ONNX's `QuantizeLinear` followed by `DequantizeLinear` with zero point 0. Inputs have one
scale, levels -128 to 127; weights have one scale per output channel, levels -127 to 127, so that
their negatives exist, too. Only linear layers and convolutions are quantized.

Gradients pass a quantizer straight through where it does not saturate (Bengio et al.,
arXiv:1308.3432), and reach its scale by the rule of learned step sizes (Esser et al.,
arXiv:1902.08153, equation 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdedge.quantization.plain import make_plain

HIGHEST = 127
INPUT_LOWEST, WEIGHT_LOWEST = -128, -127

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class QuantizedLayer:
    """What a file stores of a quantized layer.

    Attributes:
        input_scale: step of its input; FP16 represents it.
        weight_scale: [D_out], steps of its weight; FP16 represents them.
        levels: [D_out, D_in] or [D_out, D_in, H, W], int8, -127 to 127.
    """

    input_scale: float
    weight_scale: npt.NDArray[np.float32]
    levels: npt.NDArray[np.int8]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: int) -> Tensor:
        ratio = x / scale
        levels = ratio.round().clamp(lowest, HIGHEST)
        ctx.save_for_backward(ratio, levels)
        ctx.lowest, ctx.scale_shape = lowest, scale.shape
        return levels * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        ratio, levels = ctx.saved_tensors
        is_inside = (ratio >= ctx.lowest) & (ratio <= HIGHEST)
        of_scale = grad * torch.where(is_inside, levels - ratio, levels)
        return grad * is_inside, of_scale.sum_to_size(ctx.scale_shape), None


def fake_quantize(x: Tensor, scale: Tensor, *, lowest: int = INPUT_LOWEST) -> Tensor:
    """Rounds values to multiples of a scale, and saturates them; see the module's docstring.

    Args:
        x: values of any shape.
        scale: positive; broadcast to x.
        lowest: the lowest level; the highest is 127.
    """
    result: Tensor = _FakeQuantize.apply(x, scale, lowest)  # type: ignore[no-untyped-call]
    return result


class InputQuantizer(nn.Module):
    """Quantizes a layer's input, with one scale.

    Args:
        scale: positive.
    """

    scale: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return fake_quantize(x, self.scale)


class WeightQuantizer(nn.Module):
    """Quantizes a layer's weight, with one scale for each output channel.

    Args:
        scale: [D_out], positive.
        levels: the weight's shape; integers in place of the rounded ones. None: the nearest.
    """

    scale: Tensor
    levels: Tensor | None

    def __init__(self, scale: Tensor, levels: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("levels", levels)

    def forward(self, weight: Tensor) -> Tensor:
        """[D_out, ...] -> the same."""
        scale = self.scale.reshape(-1, *(1,) * (weight.ndim - 1))
        if self.levels is not None:
            return self.levels.to(weight.dtype) * scale
        return fake_quantize(weight, scale, lowest=WEIGHT_LOWEST)


def attach(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> None:
    """Quantizes some layers of a model in place, with their levels; `detach` undoes it.

    Args:
        model: any model.
        layers: by the module's name in the model.
    """
    for name, layer in layers.items():
        quantize_layer(
            model.get_submodule(name),
            InputQuantizer(layer.input_scale),
            WeightQuantizer(torch.from_numpy(layer.weight_scale), torch.from_numpy(layer.levels)),
        )


def quantize_layer(module: nn.Module, inputs: InputQuantizer, weights: WeightQuantizer) -> None:
    """Quantizes one linear layer or convolution in place.

    The quantizers are parts of the module: `input_quantizer` and `parametrizations.weight[0]`. Its
    own weight is `parametrizations.weight.original`. Copies of the model are quantized, too.
    """
    # A parametrization may check that it gives the shape and type of the weight, as this one does
    parametrize.register_parametrization(module, "weight", weights)
    module.input_quantizer = inputs
    module.register_forward_pre_hook(_quantize_input)


def detach(model: nn.Module) -> None:
    """Removes all quantizers; the layers have their own weights again."""
    for module in list(model.modules()):
        if isinstance(getattr(module, "input_quantizer", None), InputQuantizer):
            del module.input_quantizer
            hooks = module._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _quantize_input]:
                del hooks[key]
            make_plain(module, original=True)


def attached(model: nn.Module) -> dict[str, QuantizedLayer]:
    """What a file stores of the quantized layers, by the module's name; scales as files have them.

    A scale is rounded to FP16 first, and the levels follow from the rounded one. With scales of
    `round_scale`, the file computes what the model computes.
    """
    found = {}
    for name, module in model.named_modules():
        inputs = getattr(module, "input_quantizer", None)
        if not isinstance(inputs, InputQuantizer):
            continue
        weights: Any = module.parametrizations.weight
        quantizer, original = weights[0], weights.original.detach()
        scale = round_scale(quantizer.scale.detach())
        nearest = weight_levels(original, scale)
        levels = nearest if quantizer.levels is None else quantizer.levels
        found[name] = QuantizedLayer(
            input_scale=float(round_scale(inputs.scale.detach())),
            weight_scale=scale.cpu().numpy().astype(np.float32),
            levels=levels.cpu().numpy().astype(np.int8),
        )
    return found


def round_scale(scale: Tensor) -> Tensor:
    """The nearest positive scale that FP16 represents, as files store scales in FP16."""
    smallest = torch.finfo(torch.float16).smallest_normal
    highest = torch.finfo(torch.float16).max
    return scale.clamp(smallest, highest).to(torch.float16).to(scale.dtype)


def weight_scale(weight: Tensor) -> Tensor:
    """[D_out, ...] -> [D_out]: the scale whose levels reach each channel's largest weight.

    A dead channel, all of whose weights are 0, has the scale 1 / 127.
    """
    largest = weight.detach().flatten(1).abs().amax(dim=1)
    return round_scale(torch.where(largest > 0, largest, 1.0) / HIGHEST)


def weight_levels(weight: Tensor, scale: Tensor) -> Tensor:
    """[D_out, ...] and [D_out] -> the nearest levels, in int8."""
    ratio = weight / scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return ratio.round().clamp(WEIGHT_LOWEST, HIGHEST).to(torch.int8)


def _quantize_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    quantizer = module.input_quantizer
    assert isinstance(quantizer, InputQuantizer)
    return (quantizer(inputs[0]), *inputs[1:])
