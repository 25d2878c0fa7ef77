"""The list of a store's images: positions in their source, and hashes of their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from kdedge.clip.tensor_file import read_tensors, write_tensors
from kdedge.errors import DataError

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
    write_tensors(folder / _FILE, tensors, {"store": key})


def read_image_list(folder: Path, key: str) -> dict[int, str] | None:
    """Position -> SHA-256 in hex; None if there is no list, or it is damaged or another store's."""
    try:
        tensors, facts = read_tensors(folder / _FILE)
    except DataError:
        return None
    if facts.get("store") != key:
        return None
    rows = zip(tensors["positions"].tolist(), tensors["sha256"].numpy(), strict=True)
    return {position: bytes(row).hex() for position, row in rows}
