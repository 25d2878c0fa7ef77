"""The folded model as a program of torch.export, from which several targets build their files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram


def example_images(model: Any, *, size_px: int, batches: tuple[int, int]) -> Tensor:
    """Images [B, 3, S, S] for a trace.

    Args:
        model: a folded model.
        size_px: side of the model's images.
        batches: smallest and largest batch.
    """
    low, high = batches
    # A batch of 1 would become a constant
    n_images = high if low == high else max(low, 2)
    dtype = torch.uint8 if model.pixels == "uint8" else torch.float32
    return torch.zeros(n_images, 3, size_px, size_px, dtype=dtype)


def export_program(
    module: nn.Module, images: Tensor, *, batches: tuple[int, int]
) -> ExportedProgram:
    """Traces a module from `images` to logits, for batches of these sizes.

    Args:
        module: in evaluation mode, on the device of the images.
        images: what `example_images` gives.
        batches: smallest and largest batch.
    """
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=dynamic_shapes(batches))


def dynamic_shapes(batches: tuple[int, int]) -> dict[str, Any] | None:
    """The shapes that a program takes, as torch.export expects them; None for one batch size."""
    low, high = batches
    return {"images": {0: Dim("batch", min=low, max=high)}} if low < high else None
