"""`kdedge export --int8` with bad images for the ranges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ARTIFACT = Path("runs/tiny/02/artifacts/01")

# Two epochs leave a student that hardly prefers one class: rounding changes its mind
LOOSE = ("--set", "gates.agreement.int8=0%", "--set", "gates.agreement.fp16=0%")
LOOSE += ("--set", "gates.max_drop=100")


def int8_file(artifact: Path = ARTIFACT) -> dict[str, Any]:
    files = json.loads((artifact / "artifact.json").read_text())["files"]
    return {file["name"]: file for file in files}["model.int8.onnx"]


def test_black_images_show_no_ranges(trained: Path, kdedge: Callable[..., Any]) -> None:
    for number, path in enumerate(sorted(Path("pool").iterdir())):
        Image.new("RGB", (40 + number, 40)).save(path)  # other files, the same pixels
    done = kdedge("export", "tiny/02", "--int8", *LOOSE)
    assert done.code == 3
    assert "calibration images have the same pixels" in done.err
    assert "Check data.unlabeled" in done.err
    assert not ARTIFACT.exists()


def test_of_one_image_there_is_a_file_with_a_warning_and_no_choice(
    trained: Path, kdedge: Callable[..., Any]
) -> None:
    for path in sorted(Path("pool").iterdir())[1:]:
        path.unlink()
    done = kdedge("export", "tiny/02", "--int8", *LOOSE)
    assert done.code == 0, done.err
    assert "INT8 is calibrated on only 1 images" in done.err
    search = int8_file()["built_with"]["search"]
    assert (search["n_held_out"], search["steps"]) == (0, [])
    assert search["ended"] == "no images were left to choose by"


def test_pixels_that_are_not_numbers_after_decoding_are_refused(
    trained: Path, kdedge: Callable[..., Any]
) -> None:
    path = min(Path("pool").iterdir())
    Image.fromarray(np.full((40, 40), np.nan, dtype=np.float32)).save(path, format="TIFF")
    done = kdedge("export", "tiny/02", "--int8", *LOOSE)
    assert done.code == 3
    assert f"{path.name}: float pixels have no fixed range" in done.err
    assert not ARTIFACT.exists()
