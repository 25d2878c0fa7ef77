"""OpenVINO: a file gives what the model gives, and what cannot run says why."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.errors import DataError
from kdedge.inference.classify import Classifier
from kdedge.targets.openvino import run as target

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

openvino = pytest.importorskip("openvino")

WithFlags = Callable[[str], None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """The precision and the number of threads of each model that is compiled."""
    seen = []

    class Remembered(openvino.Core):
        def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
            compiled = super().compile_model(model, device, settings)
            threads = compiled.get_property("INFERENCE_NUM_THREADS")
            seen.append((settings["INFERENCE_PRECISION_HINT"], threads))
            return compiled

    monkeypatch.setattr(openvino, "Core", Remembered)
    return seen


@pytest.fixture
def files(openvino_files: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(openvino_files, tmp_path / "artifact")


def test_a_fixed_batch_and_pixels_as_bytes_are_known(
    tmp_path: Path, block_model: FoldedModel
) -> None:
    import copy

    from kdedge.builders.onnx.trace import write_onnx

    model: Any = copy.deepcopy(block_model)
    model.pixels = "uint8"
    write_onnx(model, tmp_path / "m.onnx", size_px=32, batches=(2, 2))
    openvino.save_model(openvino.Core().read_model(tmp_path / "m.onnx"), tmp_path / "m.xml")
    backend = target.load(tmp_path / "m.xml", n_threads=1)
    assert (backend.batches, backend.pixels) == ((2, 2), "uint8")
    with pytest.raises(DataError, match=r"m\.xml cannot be run on uint8 \[3, 3, 32, 32\]"):
        backend.run(np.zeros((3, 3, 32, 32), np.uint8))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_as_many_as_asked_for(
    files: Path, asked: Any, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    target.load(files / "model.xml", n_threads=threads)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    target.load(files / "model.xml")
    assert [found for _, found in asked] == [threads, threads]


def test_a_file_runs_in_float32(files: Path, asked: Any) -> None:
    """Without a setting, OpenVINO rounds to bfloat16 where the CPU can."""
    for name in ("model.xml", "model.fp16.xml"):
        target.load(files / name, n_threads=1)
    assert [precision for precision, _ in asked] == ["f32", "f32"]


def test_openvino_is_used_before_onnx_runtime(files: Path) -> None:
    classifier = Classifier.load(files, n_threads=1)
    assert classifier.file.name == "model.xml"
    assert Classifier.load(files, n_threads=1, precision="fp16").file.name == "model.fp16.xml"


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"<net></net>", None])
def test_a_file_that_is_no_graph_is_told(files: Path, data: bytes | None) -> None:
    whole = (files / "model.xml").read_bytes()
    (files / "model.xml").write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(DataError, match=r"(?s)model\.xml cannot be loaded by openv.*export again"):
        target.load(files / "model.xml")


def test_weights_that_are_changed_torn_or_missing_are_told(files: Path) -> None:
    path = files / "model.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(DataError, match=r"model\.bin.* has changed since the export"):
        Classifier.load(files, backend="openvino", precision="fp32")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be loaded by openvino"):
        target.load(files / "model.xml")
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be loaded by openvino.*model\.bin"):
        target.load(files / "model.xml")
    with pytest.raises(DataError, match=r"model\.bin.* is missing"):
        Classifier.load(files, backend="openvino", precision="fp32")


def test_a_signal_after_models_were_freed_in_any_order_reaches_its_handler(files: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from kdedge.targets.openvino.run import load\n"
        "models = [load(Path(sys.argv[1])) for _ in range(2)]\n"
        "for model in models:\n"
        "    model.run(np.zeros((3, 3, 32, 32), np.float32))\n"
        "for model in models:\n"
        "    model.close()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(files / "model.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "handled\n", "")
