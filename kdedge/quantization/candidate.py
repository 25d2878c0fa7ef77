"""A candidate for the INT8 model: a float model, changed exactly, with its quantized layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdedge.quantization.fake import (
    HIGHEST,
    WEIGHT_LOWEST,
    QuantizedLayer,
    fake_quantize,
    round_scale,
    stored_weight,
    weight_levels,
    weight_scale,
)
from kdedge.quantization.sites import InputStatistics, Site, run_layer

ALPHAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Strengths of smoothing that are tried for each site: the best one depends on the model."""

DEFAULT_ALPHA = 0.5


@dataclass(frozen=True)
class Candidate:
    """A model in INT8.

    Attributes:
        exact: a float model equal to the folded model up to rounding.
        model: the same, except for biases of its quantized layers. These compensate for the
            centers that are subtracted from inputs, and for the mean quantization error.
        layers: its quantized layers, by name; other layers stay float.
        inputs: statistics of the inputs of its layers, by name.
        alphas: strength of smoothing, by the first layer of each smoothed site.
    """

    exact: nn.Module
    model: nn.Module
    layers: dict[str, QuantizedLayer]
    inputs: Mapping[str, InputStatistics]
    alphas: Mapping[str, float]


@dataclass(frozen=True)
class CalibratedModel:
    """A float model and the statistics of its layers' inputs.

    Attributes:
        model: the folded model, or a copy with exact changes.
        sites: layers whose inputs are changed together.
        inputs: statistics of the inputs of its layers, by name, after `centers` are subtracted.
        centers: [D_in] by name, subtracted from the inputs of quantized layers; other layers
            subtract nothing.
        alphas: strength of smoothing, by the first layer of each smoothed site.
    """

    model: nn.Module
    sites: Sequence[Site]
    inputs: Mapping[str, InputStatistics]
    centers: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def centered(self) -> CalibratedModel:
        """A copy in which the range of each channel that a site reads is symmetric around zero.

        INT8 without a zero point has as many levels for either sign, and a channel that is far from
        zero leaves few of them to the others. So the middle of its range is subtracted from each
        channel, and the biases of the layers that read it compensate for that. Exact up to float32
        rounding (Wei et al., arXiv:2304.09145, 4.1). The constants move into the bias of a
        LayerNorm, or into the bias of the values, since attention weights sum to one. After an
        activation function they cost a subtraction, which a layer that stays float skips.

        Sites without biases, and convolutions, are not changed.
        """
        changed = copy.deepcopy(self.model)
        inputs = dict(self.inputs)
        centers = {}
        for site in self.sites:
            layers: list[Any] = [changed.get_submodule(name) for name in site.layers]
            stats = self.inputs[site.layers[0]]
            center = (stats.low + stats.high) / 2
            if any(layer.bias is None for layer in layers):
                continue
            if site.norm is not None:
                norm: Any = changed.get_submodule(site.norm)
                if norm.bias is None:
                    continue
                norm.bias.sub_(center)
            elif site.block is not None:
                block: Any = changed.get_submodule(site.block)
                block.subtract_from_values(center)
            elif site.activation is not None:
                centers[site.layers[0]] = center.numpy()  # such a site has one layer
            else:
                continue
            for name, layer in zip(site.layers, layers, strict=True):
                if name not in centers:
                    layer.bias.add_(layer.weight @ center)
                inputs[name] = self.inputs[name].minus(center)
        return CalibratedModel(changed, self.sites, inputs, centers)

    @torch.no_grad()
    def with_biases(self) -> nn.Module:
        """A copy of the model whose biases compensate for the centers."""
        changed = copy.deepcopy(self.model)
        for name, center in self.centers.items():
            layer: Any = changed.get_submodule(name)
            layer.bias.add_(layer.weight @ torch.from_numpy(center))
        return changed

    @torch.no_grad()
    def smoothed(self, alphas: Mapping[str, float]) -> CalibratedModel:
        """A copy that divides the channels that sites read, and multiplies weights, by factors.

        Exact up to float32 rounding: SmoothQuant (Xiao et al., arXiv:2211.10438, equation 4). The
        division moves into weight and bias of a LayerNorm, or into the layer that computes the
        values, since attention only averages values of one channel.

        Args:
            alphas: strength of smoothing, by a site's first layer; other sites are not changed.
        """
        changed = copy.deepcopy(self.model)
        inputs = dict(self.inputs)
        for site in self.sites:
            alpha = alphas.get(site.layers[0])
            if alpha is None:
                continue
            layers: list[Any] = [changed.get_submodule(name) for name in site.layers]
            factor = self._factor(site, alpha, changed)
            if site.norm is not None:
                norm: Any = changed.get_submodule(site.norm)
                norm.weight.div_(factor)
                if norm.bias is not None:
                    norm.bias.div_(factor)
            else:
                assert site.block is not None
                block: Any = changed.get_submodule(site.block)
                block.divide_values(factor)
            for name, layer in zip(site.layers, layers, strict=True):
                layer.weight.mul_(factor)
                inputs[name] = self.inputs[name].divided(factor)
        return dataclasses.replace(self, model=changed, inputs=inputs, alphas=alphas)

    def _factor(self, site: Site, alpha: float, model: nn.Module) -> Tensor:
        """[D_in]: the factors that divide a site's channels, by a model's weights (`smoothed`)."""
        inputs = torch.stack([self.inputs[name].channel_max for name in site.layers]).amax(dim=0)
        layers: list[Any] = [model.get_submodule(name) for name in site.layers]
        weight = torch.stack([layer.weight.abs().amax(dim=0) for layer in layers]).amax(dim=0)
        return inputs.clamp(min=1e-5) ** alpha / weight.clamp(min=1e-5) ** (1 - alpha)

    def candidate(self) -> Candidate:
        """This model with every layer quantized to the nearest levels."""
        layers = {
            name: _quantize_layer(self.model.get_submodule(name), stats, self.centers.get(name))
            for name, stats in self.inputs.items()
        }
        return Candidate(self.model, self.with_biases(), layers, self.inputs, self.alphas)

    def best_alphas(self, check: Callable[[], object]) -> dict[str, float]:
        """The strengths of smoothing with the least error of a site's layers, by its first layer.

        Sites that are best without smoothing are left out.

        Args:
            check: called before each site; it may raise to stop.
        """
        alphas = {}
        for site in self.sites:
            check()
            if not site.can_be_smoothed:
                continue
            errors: dict[float | None, float] = dict.fromkeys((None, *ALPHAS), 0.0)
            for alpha in errors:
                errors[alpha] = sum(self._smoothed_error(site, name, alpha) for name in site.layers)
            best = min(errors, key=errors.__getitem__)
            if best is not None:
                alphas[site.layers[0]] = best
        return alphas

    @torch.no_grad()
    def _smoothed_error(self, site: Site, name: str, alpha: float | None) -> float:
        """A layer's error at a strength of smoothing; None for no smoothing."""
        layer: Any = copy.copy(self.model.get_submodule(name))
        stats = self.inputs[name]
        if alpha is not None:
            factor = self._factor(site, alpha, self.model)
            layer._parameters = {**layer._parameters, "weight": nn.Parameter(layer.weight * factor)}
            stats = stats.divided(factor)
        return layer_error(layer, _quantize_layer(layer, stats), stats)


def _quantize_layer(
    layer: Any, stats: InputStatistics, center: npt.NDArray[np.float32] | None = None
) -> QuantizedLayer:
    """Quantizes a layer: nearest levels of its weight, and an input range up to the largest value.

    Args:
        layer: the float layer.
        stats: statistics of its input.
        center: see `QuantizedLayer`.
    """
    largest = float(stats.channel_max.max()) or 1.0
    scale = round_scale(torch.tensor(largest / HIGHEST))
    steps = weight_scale(layer.weight)
    levels = weight_levels(layer.weight.detach(), steps)
    return QuantizedLayer(float(scale), steps.numpy(), levels.numpy(), center)


@torch.no_grad()
def layer_error(layer: Any, quantized: QuantizedLayer, stats: InputStatistics) -> float:
    """Squared error of a quantized layer's output over the squared output, on the sample."""
    expected = run_layer(layer, stats.sample, layer.weight)
    error = _output_error(layer, quantized, stats)
    return float(error.square().sum() / expected.square().sum().clamp(min=1e-30))


@torch.no_grad()
def output_shift(layer: Any, quantized: QuantizedLayer, stats: InputStatistics) -> Tensor:
    """[D_out]: mean of the float output minus the quantized one, on the sample."""
    error = _output_error(layer, quantized, stats)
    return error.reshape(-1, error.shape[-1]).mean(dim=0)


def _output_error(layer: Any, quantized: QuantizedLayer, stats: InputStatistics) -> Tensor:
    """[..., D_out]: the float output minus the quantized one, on the sample."""
    x = fake_quantize(stats.sample, torch.tensor(quantized.input_scale))
    output = run_layer(layer, x, stored_weight(quantized))
    return run_layer(layer, stats.sample, layer.weight) - output


_DAMPING = 0.01  # share of the mean second moment that is added to each channel, as in GPTQ's code

_BLOCK = 128  # columns whose errors update later columns together, as in GPTQ's code


@torch.no_grad()
def round_weight(layer: Any, quantized: QuantizedLayer, stats: InputStatistics) -> QuantizedLayer:
    """Rounds a linear layer's weight so that rounding errors cancel (GPTQ, arXiv:2210.17323).

    Args:
        layer: the float layer.
        quantized: the quantized layer, whose scales are kept.
        stats: statistics of the layer's input.
    """
    scale = torch.from_numpy(quantized.weight_scale).double()[:, None]
    x = fake_quantize(stats.sample, torch.tensor(quantized.input_scale)).double()
    moments = x.T @ x / len(x)
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean().clamp(min=1e-12))
    # Upper triangle U with moments^-1 = U^T U: row i compensates column i's error in later columns
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    upper = torch.linalg.cholesky(inverse, upper=True)
    weight = layer.weight.detach().double().clone()
    levels = torch.zeros_like(weight)
    for start in range(0, weight.shape[1], _BLOCK):
        stop = min(start + _BLOCK, weight.shape[1])
        errors = torch.zeros(len(weight), stop - start, dtype=torch.float64)
        for index in range(start, stop):
            column = weight[:, index]
            levels[:, index] = (column / scale[:, 0]).round().clamp(WEIGHT_LOWEST, HIGHEST)
            error = (column - levels[:, index] * scale[:, 0]) / upper[index, index]
            errors[:, index - start] = error
            weight[:, index:stop] -= error[:, None] * upper[index, index:stop]
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return dataclasses.replace(quantized, levels=levels.to(torch.int8).numpy())
