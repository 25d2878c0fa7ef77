"""The script that draws a run's accuracies against its latencies."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from kdedge.runs.folder import RunFolder

SCRIPT = str(Path(__file__).parents[2] / "benchmarks" / "accuracy_latency.py")


def test_a_runs_models_are_drawn_on_white(
    make_run: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, picture = make_run(only="bench"), tmp_path / "picture.svg"
    monkeypatch.setattr("sys.argv", [SCRIPT, str(run.path), str(picture)])
    runpy.run_path(SCRIPT, run_name="__main__")
    root = ET.parse(picture).getroot()
    assert {"1  CLIP", "2  i8.onnx", "3  slow.engine"} <= {element.text for element in root.iter()}
    assert [e.get("fill") for e in root if e.tag.endswith("rect")] == ["#ffffff"]
    (run.path / "bench/01.json").unlink()
    with pytest.raises(SystemExit, match="run kdedge bench"):
        runpy.run_path(SCRIPT, run_name="__main__")
