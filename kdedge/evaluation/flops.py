"""GMACs of a model, counted on the graph that it executes.

torch counts FLOPs, two per multiply-add, of matrix products, convolutions and attention only.
GFLOPs are twice the GMACs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_gmacs(model: Callable[[Tensor], Any], images: Tensor) -> float:
    """Counts the multiply-adds of one call, in 1e9.

    The call runs on fake tensors, which have shapes but no values, so it takes little time.

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
            FakeTensorMode(allow_non_fake_inputs=True) as fake,
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as operations,
        ):
            model(fake.from_tensor(images))
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
    return float(operations.get_total_flops()) / 2e9
