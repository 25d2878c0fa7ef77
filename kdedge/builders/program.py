"""Exports the folded model by torch.export, and writes files that converters build from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdedge.errors import RecipeError, explain_os_error, is_out_of_memory
from kdedge.files import write_atomic
from kdedge.messages import one_line


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
    """Traces a module from images to logits.

    Args:
        module: the module, in evaluation mode, on the device of the images.
        images: the result of `example_images`.
        batches: smallest and largest batch.
    """
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=dynamic_shapes(batches))


def dynamic_shapes(batches: tuple[int, int]) -> dict[str, Any] | None:
    """The argument `dynamic_shapes` of torch.export; None if there is only one batch size."""
    low, high = batches
    return {"images": {0: Dim("batch", min=low, max=high)}} if low < high else None


def write_converted(path: Path, convert: Callable[[], bytes], *, converter: str) -> None:
    """Writes a file that another package converts from the folded model.

    Args:
        path: the file.
        convert: returns the bytes of the file.
        converter: the package, for messages.

    Raises:
        RecipeError: the package cannot express a step of the model.
        ResourceError: memory ran out, or the file cannot be written.
    """
    try:
        data = convert()
    except OSError as error:
        raise explain_os_error(error, path) from error
    except Exception as error:  # errors of packages have no common class
        if is_out_of_memory(error):
            raise
        raise RecipeError(
            f"{path.name} cannot be built by {converter}: {one_line(error)}.\n"
            f"  Leave this target out, or distill another image encoder: a plain ViT or CNN."
        ) from error
    write_atomic(path, data)
