"""A candidate: a float model with exact changes, and what is quantized of its layers."""

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
from kdedge.quantization.sites import Site, SiteStatistics, run_layer

ALPHAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Strengths of smoothing that are tried for each site: the best one depends on the model."""

DEFAULT_ALPHA = 0.5


@dataclass(frozen=True)
class Candidate:
    """A model in INT8.

    Attributes:
        exact: float; it computes what the folded model computes, up to rounding.
        model: the same, but for biases of its quantized layers: those make up for what is
            subtracted from their inputs, and for what they lack on average.
        layers: what is quantized of its layers, by name; others stay float.
        inputs: what its layers read, as `SiteStatistics` has it for the folded model.
        alphas: strength of smoothing by each site's first layer; only smoothed sites.
    """

    exact: nn.Module
    model: nn.Module
    layers: dict[str, QuantizedLayer]
    inputs: Mapping[str, SiteStatistics]
    alphas: Mapping[str, float]


@dataclass(frozen=True)
class CalibratedModel:
    """A float model and what its layers read.

    Attributes:
        model: the folded model, or a copy with exact changes.
        sites: where it is quantized.
        inputs: what its layers read, by name, without what is subtracted once they are quantized.
        centers: what that is, [D_in] by name; other layers subtract nothing.
        alphas: strength of smoothing by each site's first layer; only smoothed sites.
    """

    model: nn.Module
    sites: Sequence[Site]
    inputs: Mapping[str, SiteStatistics]
    centers: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def centered(self) -> CalibratedModel:
        """A copy whose sites read channels from -a to a, where the model has channels from b to c.

        INT8 without a zero point spends its levels on both signs alike, and a channel that is far
        from zero takes them from all others. What is subtracted from a channel is the middle of its
        values; the layers that read it make up for it in their biases. Exact up to float32 rounding
        (Wei et al., arXiv:2304.09145, 4.1). A LayerNorm takes the constants into its bias, values
        into the bias of their layer, as attention's weights sum to one; after an activation
        function they cost a subtraction, and a layer that stays float reads what it did.

        Sites without biases, and convolutions, stay as they are.
        """
        changed, inputs = copy.deepcopy(self.model), dict(self.inputs)
        centers = {}
        for site in self.sites:
            layers: list[Any] = [changed.get_submodule(name) for name in site.layers]
            seen = self.inputs[site.layers[0]]
            center = (seen.low + seen.high) / 2
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
                centers[site.layers[0]] = center.numpy()  # the only one
            else:
                continue
            for name, layer in zip(site.layers, layers, strict=True):
                if name not in centers:
                    layer.bias.add_(layer.weight @ center)
                inputs[name] = self.inputs[name].minus(center)
        return CalibratedModel(changed, self.sites, inputs, centers)

    @torch.no_grad()
    def with_biases(self) -> nn.Module:
        """The model for its quantized layers: their biases make up for the centers."""
        changed = copy.deepcopy(self.model)
        for name, center in self.centers.items():
            layer: Any = changed.get_submodule(name)
            layer.bias.add_(layer.weight @ torch.from_numpy(center))
        return changed

    @torch.no_grad()
    def smoothed(self, alphas: Mapping[str, float]) -> CalibratedModel:
        """A copy whose sites read channels divided by factors, in exchange for their weights.

        Exact up to float32 rounding: SmoothQuant (Xiao et al., arXiv:2211.10438, equation 4). A
        LayerNorm takes its factors into weight and bias. Values take theirs into the layer that
        gives them, as attention only averages values of one channel.

        Args:
            alphas: by each site's first layer; other sites keep their channels.
        """
        changed, inputs = copy.deepcopy(self.model), dict(self.inputs)
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
        """[D_in]: what divides a site's channels, by the weights of a model; see `smoothed`."""
        reads = torch.stack([self.inputs[name].channel_max for name in site.layers]).amax(dim=0)
        layers: list[Any] = [model.get_submodule(name) for name in site.layers]
        weight = torch.stack([layer.weight.abs().amax(dim=0) for layer in layers]).amax(dim=0)
        return reads.clamp(min=1e-5) ** alpha / weight.clamp(min=1e-5) ** (1 - alpha)

    def candidate(self) -> Candidate:
        """This model with every layer quantized, with the nearest levels."""
        layers = {
            name: quantize_layer(self.model.get_submodule(name), seen, self.centers.get(name))
            for name, seen in self.inputs.items()
        }
        return Candidate(self.model, self.with_biases(), layers, self.inputs, self.alphas)

    def best_alphas(self, check: Callable[[], object]) -> dict[str, float]:
        """By each site's first layer, the strength of smoothing with the least error of its layers.

        A site that no smoothing helps is left out.

        Args:
            check: called before each site; it may raise.
        """
        alphas = {}
        for site in self.sites:
            check()
            if not site.can_be_smoothed:
                continue
            tried: dict[float | None, float] = dict.fromkeys((None, *ALPHAS), 0.0)
            for alpha in tried:
                tried[alpha] = sum(self._smoothed_error(site, name, alpha) for name in site.layers)
            best = min(tried, key=tried.__getitem__)
            if best is not None:
                alphas[site.layers[0]] = best
        return alphas

    @torch.no_grad()
    def _smoothed_error(self, site: Site, name: str, alpha: float | None) -> float:
        """A layer's error at a strength of smoothing."""
        layer: Any = copy.copy(self.model.get_submodule(name))
        seen = self.inputs[name]
        if alpha is not None:
            factor = self._factor(site, alpha, self.model)
            layer._parameters = {**layer._parameters, "weight": nn.Parameter(layer.weight * factor)}
            seen = seen.divided(factor)
        return layer_error(layer, quantize_layer(layer, seen), seen)


def quantize_layer(
    layer: Any, seen: SiteStatistics, center: npt.NDArray[np.float32] | None = None
) -> QuantizedLayer:
    """A layer with the nearest levels of its weight; its input's levels reach the largest value.

    Args:
        layer: the float layer.
        seen: what it reads.
        center: see `QuantizedLayer`.
    """
    reach = float(seen.channel_max.max()) or 1.0
    scale = round_scale(torch.tensor(reach / HIGHEST))
    steps = weight_scale(layer.weight)
    levels = weight_levels(layer.weight.detach(), steps)
    return QuantizedLayer(float(scale), steps.numpy(), levels.numpy(), center)


@torch.no_grad()
def layer_error(layer: Any, quantized: QuantizedLayer, seen: SiteStatistics) -> float:
    """Squared error of a quantized layer's output by the squared output, on the layer's sample."""
    expected = run_layer(layer, seen.sample, layer.weight)
    lost = _lost(layer, quantized, seen)
    return float(lost.square().sum() / expected.square().sum().clamp(min=1e-30))


@torch.no_grad()
def output_shift(layer: Any, quantized: QuantizedLayer, seen: SiteStatistics) -> Tensor:
    """[D_out]: what a quantized layer's output lacks on average, on the layer's sample."""
    lost = _lost(layer, quantized, seen)
    return lost.reshape(-1, lost.shape[-1]).mean(dim=0)


def _lost(layer: Any, quantized: QuantizedLayer, seen: SiteStatistics) -> Tensor:
    """The float output minus the quantized one; [..., D_out]."""
    x = fake_quantize(seen.sample, torch.tensor(quantized.input_scale))
    rounded = run_layer(layer, x, stored_weight(quantized))
    return run_layer(layer, seen.sample, layer.weight) - rounded


_DAMPING = 0.01  # share of the mean second moment that is added to each channel, as in GPTQ's code

_BLOCK = 128  # columns whose losses are handed on together, as in GPTQ's code


@torch.no_grad()
def round_weight(layer: Any, quantized: QuantizedLayer, seen: SiteStatistics) -> QuantizedLayer:
    """A linear layer whose levels make up for each other's rounding (GPTQ, arXiv:2210.17323).

    Args:
        layer: the float layer.
        quantized: its scales are kept.
        seen: what the layer reads.
    """
    scale = torch.from_numpy(quantized.weight_scale).double()[:, None]
    x = fake_quantize(seen.sample, torch.tensor(quantized.input_scale)).double()
    moments = x.T @ x / len(x)
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean().clamp(min=1e-12))
    # Upper triangle U with moments^-1 = U^T U: row i has what column i's loss costs later columns
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rest = layer.weight.detach().double().clone()
    levels = torch.zeros_like(rest)
    for start in range(0, rest.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rest.shape[1])
        lost = torch.zeros(len(rest), stop - start, dtype=torch.float64)
        for index in range(start, stop):
            column = rest[:, index]
            levels[:, index] = (column / scale[:, 0]).round().clamp(WEIGHT_LOWEST, HIGHEST)
            lost[:, index - start] = (column - levels[:, index] * scale[:, 0]) / upper[index, index]
            rest[:, index:stop] -= lost[:, index - start, None] * upper[index, index:stop]
        rest[:, stop:] -= lost @ upper[start:stop, stop:]
    return dataclasses.replace(quantized, levels=levels.to(torch.int8).numpy())
