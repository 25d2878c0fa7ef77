"""Work of a model, counted on the graph that it executes.

torch counts operations, two a multiply-add, of matrix products, convolutions and attention, and
nothing else. Everything here gives multiply-adds; GFLOPs are twice the GMACs.
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
    """Multiply-adds of one call, 1e9.

    The call runs on tensors that have shapes and no values, so it costs next to nothing.

    Args:
        model: anything callable on images.
        images: [B, 3, H, W], as it takes them; only the shape, type and device matter.
    """
    # Fused attention on a CPU and torch's fast path for frozen blocks are kernels that the counter
    # does not know; the same model in plain matrix products has the same operations.
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
