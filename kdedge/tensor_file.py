"""Tensors and facts in one safetensors file with a SHA-256 of both.

safetensors itself does not notice a changed value. The bytes of a file depend only on its content:
two runs with equal results have equal files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdedge.errors import DataError, os_reason
from kdedge.files import check_regular, write_atomic

_ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Writes a file atomically.

    Args:
        path: the file; an existing one is replaced.
        tensors: on the CPU, contiguous, none sharing memory with another.
        facts: texts about the tensors; `digest` is a reserved key.

    Raises:
        ResourceError: the file cannot be written.
    """
    data = save(dict(tensors), {**facts, "digest": _digest(tensors, facts)})
    # The library writes metadata in an order that changes from call to call
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    n_missing = -len(text) % _ALIGNMENT
    text += n_missing * b" "
    write_atomic(path, len(text).to_bytes(8, "little") + text + data[8 + size :])


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors, which are views of the file, and the facts of `write_tensors`.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise DataError(f"{path} cannot be read: {os_reason(error)}.") from error
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if facts.pop("digest", None) != _digest(tensors, facts):
        raise DataError(f"{path} is damaged: its contents do not match their SHA-256.")
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
