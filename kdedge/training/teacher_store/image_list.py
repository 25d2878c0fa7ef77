"""The list of a store's images: positions in their source, and hashes of their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from kdedge.clip.tensor_file import encode_tensors
from kdedge.files import write_atomic

_FILE = "images.safetensors"


def write_image_list(folder: Path, key: str, digests: Mapping[int, str]) -> None:
    """Writes a store's list if it has none.

    Args:
        folder: of the store.
        key: of the store.
        digests: position -> SHA-256 in hex, positions ascending, at least one.

    Raises:
        ResourceError: the file cannot be written.
    """
    if (folder / _FILE).exists():
        return
    hashes = b"".join(map(bytes.fromhex, digests.values()))
    tensors = {
        "positions": torch.tensor(list(digests), dtype=torch.int64),
        "sha256": torch.frombuffer(bytearray(hashes), dtype=torch.uint8).reshape(-1, 32),
    }
    write_atomic(folder / _FILE, encode_tensors(tensors, {"store": key}))


def read_image_list(folder: Path, key: str) -> dict[int, str] | None:
    """Position -> SHA-256 in hex; None if there is no list, or it is damaged or another store's."""
    try:
        with safe_open(folder / _FILE, framework="pt") as file:
            if (file.metadata() or {}).get("store") != key:
                return None
            positions, hashes = file.get_tensor("positions"), file.get_tensor("sha256")
    except (OSError, SafetensorError):
        return None
    is_list = positions.dtype == torch.int64 and positions.ndim == 1
    if not is_list or hashes.dtype != torch.uint8 or hashes.shape != (len(positions), 32):
        return None
    return {
        position: bytes(row).hex()
        for position, row in zip(positions.tolist(), hashes.numpy(), strict=True)
    }
