"""LiteRT: a file gives what the model gives, and what cannot run says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.errors import DataError

if TYPE_CHECKING:
    pass

pytest.importorskip("litert_torch")
torch = pytest.importorskip("torch")

from kdedge.targets.litert import run as target  # noqa: E402


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def test_int8_rounds_weights_by_output_and_inputs_by_token(
    files: Path, check_int8_by_token: Callable[..., None]
) -> None:
    check_int8_by_token(target.load(files / "model.int8.tflite", n_threads=1))


@pytest.mark.parametrize("damage", ["empty", "text", "half", "header", "offset", "middle"])
def test_a_damaged_file_is_told(files: Path, damage: str, capfd: Any) -> None:
    path = files / "model.tflite"
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"no model",
            "half": data[: len(data) // 2],
            "header": b"\xff" * 64 + data[64:],
            "offset": b"\xff" * 4 + data[4:],
            "middle": data[:8] + b"\xff" * 40 + data[48:],
        }[damage]
    )
    with pytest.raises(DataError, match=r"model\.tflite cannot be loaded by ai-edge-litert \d"):
        target.load(path, n_threads=1)
    assert capfd.readouterr().err == ""


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    from kdedge.targets.litert.build import silent

    class Doubles(torch.nn.Module):
        def forward(self, values: Any) -> Any:
            return 2 * values

    path = tmp_path / "double.tflite"
    with silent():
        import litert_torch

        litert_torch.convert(Doubles(), (torch.zeros(2, 3),)).export(str(path))
    with pytest.raises(DataError, match=r"takes .*float32 \[2, 3\].* and gives .*\n  Expected im"):
        target.load(path, n_threads=1)
