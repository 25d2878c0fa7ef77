"""Layer-wise rounding of weights: levels that lose least of a layer's output, not of its weights.

Columns are rounded one after the other, and what a column loses is given to the columns that are
still to be rounded, by the inverse of the inputs' second moments (Frantar et al., GPTQ,
arXiv:2210.17323, equations 2 and 3). Like AdaRound (arXiv:2004.10568) it minimizes
`|X W - X_q W_q|^2`, but in closed form, without training.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from kdedge.quantization.fake import HIGHEST, WEIGHT_LOWEST, InputQuantizer, QuantizedLayer
from kdedge.quantization.sites import Observed

_DAMPING = 0.01
"""Share of the mean second moment that is added to each channel, as in GPTQ's code."""

_BLOCK = 128
"""Columns whose losses are handed on together, as in GPTQ's code."""


@torch.no_grad()
def round_weight(layer: Any, quantized: QuantizedLayer, seen: Observed) -> QuantizedLayer:
    """A linear layer with other levels.

    Args:
        layer: the float layer.
        quantized: its scales are kept.
        seen: what the layer reads.
    """
    scale = torch.from_numpy(quantized.weight_scale).double()[:, None]
    x = InputQuantizer(quantized.input_scale)(seen.sample).double()
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
        for at in range(start, stop):
            column = rest[:, at]
            levels[:, at] = (column / scale[:, 0]).round().clamp(WEIGHT_LOWEST, HIGHEST)
            lost[:, at - start] = (column - levels[:, at] * scale[:, 0]) / upper[at, at]
            rest[:, at:stop] -= lost[:, at - start, None] * upper[at, at:stop]
        rest[:, stop:] -= lost @ upper[start:stop, stop:]
    return dataclasses.replace(quantized, levels=levels.to(torch.int8).numpy())
