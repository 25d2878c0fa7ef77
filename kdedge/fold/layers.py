"""The layers of a folded image encoder that can be made smaller."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdedge.fold.head import FoldedModel
from kdedge.fold.observe import observe
from kdedge.targets.onnx.graph import MIN_CHANNELS


def inner_layers(encoder: FoldedModel, size_px: int) -> dict[str, nn.Linear | nn.Conv2d]:
    """The encoder's linear layers on tokens and its wide convolutions, in the order of their calls.

    These are the layers that INT8 quantizes: without the head, the first convolution, and depthwise
    ones. A layer that runs more than once for an image is left out.

    Args:
        encoder: folded, with plain layers.
        size_px: side of its images.
    """
    device = next(encoder.parameters()).device
    names = {id(module): name for name, module in encoder.named_modules()}
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for module, call in observe(
        encoder, torch.zeros(1, 3, size_px, size_px, device=device)
    ).single_calls():
        if module is encoder.fused_head or not isinstance(call.input, Tensor):
            continue
        is_linear = isinstance(module, nn.Linear) and call.input.ndim > 2
        is_wide = isinstance(module, nn.Conv2d) and module.weight.shape[1] >= MIN_CHANNELS
        if is_linear or is_wide:
            found[names[id(module)]] = module
    return found
