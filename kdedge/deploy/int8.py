"""INT8 of a folded model: the search, with what the export knows of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from kdedge.files import explain_os_error
from kdedge.quantization.search import Found, search
from kdedge.targets.onnx.graph import load_graph
from kdedge.targets.onnx.insert import find_sites


def search_int8(
    model: nn.Module,
    onnx_path: Path,
    images: npt.NDArray[Any],
    held_out: npt.NDArray[Any],
    *,
    gate_percent: float,
    minutes: float,
    class_matrix: npt.NDArray[Any] | None,
) -> Found:
    """Finds an INT8 model that should pass its gate on other images.

    The best of several candidates is better on the images that chose it than on others. So the
    search goes on until the agreement to expect is half-way from the gate to 100 %. Layers are left
    in float, which costs speed, until it is a quarter of the way.

    Args:
        model: the folded model.
        onnx_path: its float32 file.
        images: [N, 3, S, S], as the model takes them, for ranges.
        held_out: [M, 3, S, S], other images.
        gate_percent: the agreement that the file needs.
        minutes: time for the search.
        class_matrix: [C, D], if classes are open; else None.

    Raises:
        DataError: an image or the model's values are not finite.
    """
    return search(
        model,
        find_sites(load_graph(onnx_path), model),
        torch.from_numpy(images),
        torch.from_numpy(held_out),
        target_percent=(gate_percent + 100) / 2,
        enough_percent=gate_percent + (100 - gate_percent) / 4,
        minutes=minutes,
        class_matrix=None if class_matrix is None else torch.tensor(class_matrix),  # a copy
    )


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Context with an empty hidden folder, which is removed afterwards.

    Raises:
        ResourceError: it cannot be made.
    """
    try:
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".int8."))
    except OSError as error:
        raise explain_os_error(error, folder) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
