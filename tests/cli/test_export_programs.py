"""`kdedge export --executorch` and `--litert`, from a trained project to the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)

ARTIFACT = Path("runs/tiny/02/artifacts/01")

# A student of two epochs hardly prefers one class: rounding changes its mind.
LOOSE = ("--set", "gates.agreement.int8=0%", "--set", "gates.agreement.fp16=0%")
LOOSE += ("--set", "gates.max_drop=100")

Kdedge = Callable[..., Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# ExecuTorch's lowering takes a minute of computing, and five on a busy machine
SLOW = (pytest.mark.slow, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("target", "package", "suffix"),
    [
        pytest.param("executorch", "executorch", "pte", marks=SLOW),
        ("litert", "litert_torch", "tflite"),
    ],
)
def test_a_run_gets_files_that_are_compared_predicted_measured_and_reported(
    trained: Path,
    kdedge: Kdedge,
    predict: Callable[..., list[dict[str, Any]]],
    target: str,
    package: str,
    suffix: str,
) -> None:
    pytest.importorskip(package)
    done = kdedge("export", "tiny/02", f"--{target}", "--int8", *LOOSE)
    assert done.code == 0, done.err
    record = read(ARTIFACT / "artifact.json")
    files = {file["name"]: file for file in record["files"] if file["target"] == target}
    assert {name: file["precision"] for name, file in files.items()} == {
        f"model.{suffix}": "fp32",
        f"model.int8.{suffix}": "int8",
    }
    first = record["files"][0]["parity"]
    for file in files.values():
        assert file["gate"] == "passed"
        # On the images that the ONNX files were compared on, with their labels
        assert file["parity"]["images_hash"] == first["images_hash"]
        assert file["parity"]["n_labeled"] == 20
        assert file["parity"]["runtime"].startswith(f"{target} ")
    assert files[f"model.{suffix}"]["parity"]["agreement_percent"] == 100
    card = (ARTIFACT / "README.md").read_text()
    assert all(f"| `{name}` |" in card for name in files)

    expected = predict("--backend", "onnxruntime")
    found = predict("--backend", target)
    assert [one["top"][0]["class"] for one in found] == [one["top"][0]["class"] for one in expected]
    assert len(predict("--backend", target, "--precision", "int8")) == len(expected)

    done = kdedge(
        *("bench", str(ARTIFACT), "--batch", "1", "--seconds", "0.01", "--calls", "3"),
        *("--format", "json", "--output", "bench.json"),
    )
    assert done.code == 0, done.err
    measured = {row["model"]: row["runtime"] for row in read(Path("bench.json"))["rows"]}
    assert {measured[name].split()[0] for name in files} == {target}
    assert kdedge("report", "tiny/02", "--output", "report").code == 0
    (page,) = Path("report").rglob("*.html")
    assert all(name in page.read_text() for name in files)


@pytest.mark.parametrize(
    ("target", "module", "file"),
    [
        ("executorch", "executorch.runtime", "model.pte"),
        ("litert", "litert_torch", "model.tflite"),
    ],
)
def test_without_the_package_the_onnx_files_are_written_and_the_line_is_told(
    trained: Path,
    kdedge: Kdedge,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    module: str,
    file: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = kdedge("export", "tiny/02", f"--{target}")
    assert done.code == 4
    assert f"pip install 'kdedge[{target}]'" in done.err
    assert (ARTIFACT / "model.onnx").is_file()
    assert not (ARTIFACT / file).exists()
