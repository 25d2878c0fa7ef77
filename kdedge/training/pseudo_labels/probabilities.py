"""The file of class probabilities of unlabeled images: float16 [N, C], with their provenance."""

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
    """Writes class probabilities, atomically.

    Args:
        path: the file.
        half: [N, C] float16, on the CPU, in the order of the images' source.
        origin: hashes of what they depend on, by name.

    Raises:
        ResourceError: the file cannot be written.
    """
    metadata = {"format": FORMAT, **origin, "sha256": _sha256(half)}
    write_atomic(path, encode_tensors({_NAME: half.contiguous()}, metadata))


def read_probabilities(path: Path, shape: Sequence[int], origin: Mapping[str, str]) -> Tensor | str:
    """[N, C] float16 as written, or the reason why they cannot be used, in words.

    Args:
        path: the file.
        shape: N and C.
        origin: hashes of what they must depend on, by name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            half: Tensor = file.get_tensor(_NAME)
    except (OSError, SafetensorError) as error:
        return f"it is cut off or damaged ({error})"
    if any(metadata.get(key) != value for key, value in origin.items()):
        return "it is for other images, classes, models or settings"
    if half.dtype != torch.float16 or list(half.shape) != list(shape):
        return f"it holds {half.dtype} {list(half.shape)}, not float16 {list(shape)}"
    if metadata.get("sha256") != _sha256(half):
        return "its contents have another SHA-256 than recorded"
    return half


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()
