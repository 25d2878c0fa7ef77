"""`kdedge export --int8` with bad images, a gate out of reach, Ctrl-C and a full disk."""

from __future__ import annotations

import json
import signal
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
OUT_OF_REACH = (*LOOSE[2:], "--set", "gates.agreement.int8=100%")


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


def test_pixels_that_are_not_numbers_after_decoding_do_not_reach_the_ranges(
    trained: Path, kdedge: Callable[..., Any]
) -> None:
    path = min(Path("pool").iterdir())
    Image.fromarray(np.full((40, 40), np.nan, dtype=np.float32)).save(path, format="TIFF")
    done = kdedge("export", "tiny/02", "--int8", *LOOSE)
    assert done.code == 0, done.err
    layers = int8_file()["built_with"]["search"]["layers"]
    assert all(np.isfinite(layer["error_percent"]) for layer in layers.values())


def test_a_gate_out_of_reach_keeps_the_best_file_marked_with_exit_code_6(
    trained: Path, kdedge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    class Reversed(onnxruntime.InferenceSession):
        """An ONNX Runtime that gives the INT8 file's logits with the other sign."""

        def __init__(self, path: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(path, *arguments, **options)
            self.sign = -1 if str(path).endswith("model.int8.onnx") else 1

        def run(self, *arguments: Any) -> Any:
            return [self.sign * values for values in super().run(*arguments)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Reversed)
    done = kdedge("export", "tiny/02", "--int8", *OUT_OF_REACH)
    assert done.code == 6
    assert "model.int8.onnx" in done.err
    assert (ARTIFACT / "model.int8.onnx").is_file()
    assert int8_file()["gate"] == "missed"
    kept = [step for step in int8_file()["built_with"]["search"]["steps"] if step["kept"]]
    assert kept


def test_ctrl_c_during_the_search_keeps_the_best_so_far(
    trained: Path, start: Callable[..., Any]
) -> None:
    process = start("export", "tiny/02", "--int8", *OUT_OF_REACH)
    process.wait_until(lambda: "INT8: centered" in process.stderr)
    process.send(signal.SIGINT)
    assert process.wait() in (0, 6)
    assert "Ctrl-C ends the search" in process.stderr
    assert (ARTIFACT / "model.int8.onnx").is_file()
    search = int8_file()["built_with"]["search"]
    assert search["ended"] == "Ctrl-C ended it"
    assert search["steps"]
    assert [path.name for path in ARTIFACT.parent.iterdir()] == ["01"]


def test_a_disk_that_is_full_when_the_int8_file_is_written_keeps_nothing(
    trained: Path, kdedge: Callable[..., Any], small_disk: Callable[[int], Path]
) -> None:
    done = kdedge("export", "tiny/02", "--output", "all", "--fp16", *LOOSE)
    assert done.code == 0, done.err
    n_bytes = sum(path.stat().st_size for path in Path("all").iterdir())
    folder = small_disk(n_bytes // 1000 + 100)  # room for these files, and for no graph more
    done = kdedge("export", "tiny/02", "--int8", "--output", str(folder / "artifact"), *LOOSE)
    assert done.code == 7
    assert "disk is full" in done.err
    assert list(folder.iterdir()) == []
