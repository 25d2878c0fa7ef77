"""The file of class probabilities of unlabeled images: float16 [N, C], with what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdedge.clip.tensor_file import encode_tensors
from kdedge.files import write_atomic

FORMAT = "kdedge-class-probabilities-1"
_NAME = "class_probabilities"


def write_probabilities(path: Path, half: Tensor, origin: Mapping[str, str]) -> None:
    """Writes class probabilities, whole or not at all.

    Args:
        path: the file.
        half: [N, C] float16, on the CPU, in the order of the images' source.
        origin: hashes of what made them, by name.

    Raises:
        ResourceError: the file cannot be written.
    """
    metadata = {"format": FORMAT, **origin, "sha256": _sha256(half)}
    write_atomic(path, encode_tensors({_NAME: half.contiguous()}, metadata))


def read_probabilities(path: Path, shape: Sequence[int], origin: Mapping[str, str]) -> Tensor | str:
    """[N, C] float16 as they were written, or why they cannot be used, in words.

    Args:
        path: the file.
        shape: N and C.
        origin: hashes of what has to have made them.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            half: Tensor = file.get_tensor(_NAME)
    except (OSError, SafetensorError) as error:
        return f"it is cut off or damaged ({error})"
    if any(metadata.get(key) != value for key, value in origin.items()):
        return "something else made it"
    if half.dtype != torch.float16 or list(half.shape) != list(shape):
        return f"it holds {half.dtype} {list(half.shape)}, not float16 {list(shape)}"
    if metadata.get("sha256") != _sha256(half):
        return "its SHA-256 is another than when it was written"
    return half


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()
