"""`kdedge export --openvino`, `--executorch`, `--litert`: from a trained project to the report."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.runtime.machine import has_bf16

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)

ARTIFACT = Path("runs/tiny/02/artifacts/01")

# A student of two epochs hardly prefers one class: rounding changes its mind.
LOOSE = ("--set", "gates.agreement.int8=0%", "--set", "gates.agreement.fp16=0%")
LOOSE += ("--set", "gates.max_drop=100")

Kdedge = Callable[..., Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


OPENVINO = {"model.xml": "fp32", "model.fp16.xml": "fp16", "model.int8.xml": "int8"}
if has_bf16():
    OPENVINO["model.bf16.xml"] = "bf16"
# ExecuTorch's lowering takes a minute of computing, and five on a busy machine
SLOW = (pytest.mark.slow, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("target", "package", "names"),
    [
        ("openvino", "openvino", OPENVINO),
        pytest.param(
            *("executorch", "executorch", {"model.pte": "fp32", "model.int8.pte": "int8"}),
            marks=SLOW,
        ),
        ("litert", "litert_torch", {"model.tflite": "fp32", "model.int8.tflite": "int8"}),
    ],
)
def test_a_run_gets_files_that_are_compared_predicted_measured_and_reported(
    trained: Path,
    kdedge: Kdedge,
    predict: Callable[..., list[dict[str, Any]]],
    target: str,
    package: str,
    names: dict[str, str],
) -> None:
    pytest.importorskip(package)
    done = kdedge("export", "tiny/02", f"--{target}", "--int8", *LOOSE)
    assert done.code == 0, done.err
    record = read(ARTIFACT / "artifact.json")
    files = {file["name"]: file for file in record["files"] if file["target"] == target}
    assert {name: file["precision"] for name, file in files.items()} == names
    first = record["files"][0]["parity"]
    for file in files.values():
        assert file["gate"] == "passed"
        # On the images that the ONNX files were compared on, with their labels
        assert file["parity"]["images_hash"] == first["images_hash"]
        assert file["parity"]["n_labeled"] == 20
        assert file["parity"]["runtime"].startswith(f"{target} ")
    assert files[next(iter(names))]["parity"]["agreement_percent"] == 100

    listed = {file["name"]: file["sha256"] for file in record["files"]} | record["others"]
    assert listed.keys() == {path.name for path in ARTIFACT.iterdir()} - {"artifact.json"}
    for name, sha256 in listed.items():
        assert hashlib.sha256((ARTIFACT / name).read_bytes()).hexdigest() == sha256
    card = (ARTIFACT / "README.md").read_text()
    assert all(f"| `{name}` |" in card for name in files)

    expected = predict("--backend", "onnxruntime")
    found = predict(
        *(() if target == "openvino" else ("--backend", target))
    )  # OpenVINO's by itself
    assert [one["top"][0]["class"] for one in found] == [one["top"][0]["class"] for one in expected]
    for precision in names.values():
        answers = predict("--backend", target, "--precision", precision)
        assert len(answers) == len(expected)

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
        ("openvino", "openvino", "model.xml"),
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


def test_an_artifact_gets_them_later_and_its_card_lists_them(
    exported_project: Path, tmp_path: Path, kdedge: Kdedge
) -> None:
    pytest.importorskip("openvino")
    artifact = shutil.copytree(exported_project / ARTIFACT, tmp_path / "artifact")
    done = kdedge("export", str(artifact), "--openvino", "--int8")
    assert done.code == 0, done.err
    card = (artifact / "README.md").read_text()
    assert all(f"| `{name}` |" in card for name in OPENVINO)


def test_a_miss_before_the_gates_were_changed_by_hand_says_so(
    exported: Path, kdedge: Kdedge
) -> None:
    pytest.importorskip("openvino")
    assert kdedge("export", str(ARTIFACT), "--openvino").code == 0
    record = read(ARTIFACT / "artifact.json")
    (file,) = (file for file in record["files"] if file["name"] == "model.xml")
    file["gate"] = "missed"
    (ARTIFACT / "artifact.json").write_text(json.dumps(record))
    done = kdedge("export", str(ARTIFACT), "--openvino")
    assert done.code == 6
    assert "before the gates in artifact.json were changed" in done.err
