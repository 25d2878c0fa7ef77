"""Ranges of activations: from a sample of values to the magnitude that INT8's last level spans.

- max: the largest magnitude; nothing saturates.
- percentile: 99.99 % of the magnitudes (as FasterTransformer's guide for ViTs takes).
- mse: the range with the least mean squared error of the quantized values.
- entropy: the range with the least Kullback-Leibler divergence between the histogram of magnitudes
  and its quantized version (Migacz, "8-bit inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from kdedge.quantization.fake import HIGHEST, fake_quantize

Range = Literal["max", "percentile", "mse", "entropy"]

RANGES: tuple[Range, ...] = get_args(Range)

PERCENTILE = 0.9999

_N_VALUES = 200_000
"""Values that are looked at, evenly spaced: more change no range noticeably."""

_CLIPS = tuple(1 - step / 40 for step in range(33))  # down to a fifth of the largest magnitude
_N_BINS, _N_LEVELS, _BIN_STEP = 2048, 128, 32


def find_range(values: Tensor, method: Range, *, largest: float) -> float:
    """The magnitude that the last level stands for.

    Args:
        values: a sample of a tensor's values, any shape.
        method: see the module's docstring.
        largest: the largest magnitude of all values, also of those outside the sample.

    Returns:
        At most `largest`; 1 where all values are 0, so that a step is positive.
    """
    if largest == 0:
        return 1.0
    if method == "max":
        return largest
    flat = values.reshape(-1).abs()
    flat = flat[:: max(1, len(flat) // _N_VALUES)]
    if method == "percentile":
        at = min(len(flat) - 1, int(PERCENTILE * len(flat)))
        found = float(flat.sort().values[at])
    elif method == "mse":
        errors = [_squared_error(flat, clip * largest) for clip in _CLIPS]
        found = _CLIPS[errors.index(min(errors))] * largest
    else:
        found = _by_entropy(flat, largest)
    return found if found > 0 else largest


def _squared_error(values: Tensor, reach: float) -> float:
    quantized = fake_quantize(values, torch.tensor(reach / HIGHEST))
    return float((quantized - values).square().mean())


def _by_entropy(magnitudes: Tensor, largest: float) -> float:
    """The range whose histogram loses least when 128 levels stand for its bins."""
    counts = torch.histc(magnitudes, _N_BINS, 0.0, largest).double()
    best, found = float("inf"), largest
    for n_bins in range(_N_LEVELS, _N_BINS + 1, _BIN_STEP):
        expected = counts[:n_bins].clone()
        is_there = expected > 0
        level = torch.arange(n_bins) * _N_LEVELS // n_bins
        sums = torch.zeros(_N_LEVELS, dtype=torch.float64).index_add(0, level, expected)
        sizes = torch.zeros(_N_LEVELS, dtype=torch.float64).index_add(0, level, is_there.double())
        quantized = torch.where(is_there, sums[level] / sizes[level].clamp(min=1), 0.0)
        expected[-1] += counts[n_bins:].sum()  # what saturates
        p, q = expected / expected.sum(), quantized / quantized.sum().clamp(min=1e-12)
        used = (p > 0) & (q > 0)
        divergence = float((p[used] * (p[used] / q[used]).log()).sum())
        divergence += float(p[(p > 0) & (q <= 0)].sum()) * 10  # a value that no level stands for
        if divergence < best:
            best, found = divergence, largest * n_bins / _N_BINS
    return found
