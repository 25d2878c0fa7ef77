"""GMACs of a model, counted on the graph that it executes.

torch counts FLOPs, two per multiply-add, of matrix products, convolutions and attention only.
GFLOPs are twice the GMACs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_gmacs(model: Callable[[Tensor], Any], images: Tensor) -> float:
    """Counts the multiply-adds of one call, in 1e9.

    The call is executed, unless the model and the images are on the meta device.

    Args:
        model: a callable on images.
        images: [B, 3, H, W]; only shape, dtype and device matter.
    """
    # The counter does not know the kernels of fused CPU attention and of torch's fast path. Plain
    # matrix products have the same operations.
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as operations,
        ):
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
    return float(operations.get_total_flops()) / 2e9
