"""The file of class probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdedge.training.pseudo_labels.probabilities import read_probabilities, write_probabilities

HALF = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]).half()
ORIGIN = {"made_by": "9f3c", "image_list": "c2a7"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_probabilities(tmp_path / "a.safetensors", HALF, ORIGIN)
    found = read_probabilities(tmp_path / "a.safetensors", (3, 2), ORIGIN)
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, HALF)


@pytest.mark.parametrize(
    ("shape", "origin", "why"),
    [
        ((3, 2), {"made_by": "0000"}, "it is for other images, classes"),
        ((3, 3), ORIGIN, "not float16 [3, 3]"),
    ],
)
def test_another_origin_or_size_is_not_used(
    tmp_path: Path, shape: tuple[int, int], origin: dict[str, str], why: str
) -> None:
    write_probabilities(tmp_path / "a.safetensors", HALF, ORIGIN)
    assert why in str(read_probabilities(tmp_path / "a.safetensors", shape, origin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_format_of_numbers_is_not_used(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"class_probabilities": HALF.to(dtype)}, path, ORIGIN)
    assert "not float16" in str(read_probabilities(path, (3, 2), ORIGIN))


def test_a_changed_value_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_probabilities(path, HALF, ORIGIN)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "SHA-256" in str(read_probabilities(path, (3, 2), ORIGIN))
