"""ONNX Runtime: an ONNX file gives what numpy gives, and what cannot run says why."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.errors import DataError, ResourceError, SetupError
from kdedge.targets.onnx import run as target

WriteModel = Callable[..., Path]


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.uint8)


@pytest.fixture
def load_onnx() -> Callable[..., Any]:
    """Loads an ONNX file with ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    return target.load


@pytest.mark.parametrize("pixels", ["float", "uint8"])
def test_external_data_is_read_from_beside_the_file(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel, mean_color_logits: Any, pixels: str
) -> None:
    path = write_model(tmp_path / "m.onnx", external="m.data", pixels=pixels, batch=3)
    assert (tmp_path / "m.data").stat().st_size > 0
    backend = load_onnx(path)
    assert backend.batches == (3, 3)
    logits = backend.run(IMAGES if pixels == "uint8" else IMAGES / np.float32(255))
    # Sums of 256 float32 values from 0 to 1 and products with numbers up to 8
    expected = mean_color_logits(IMAGES.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    (tmp_path / "m.data").unlink()
    with pytest.raises(DataError, match=r"m\.data"):
        load_onnx(path)


def test_loading_does_not_read_the_whole_file_into_pythons_memory(
    load_onnx: Any, tmp_path: Path
) -> None:
    n_bytes = 32 << 20
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(n_bytes)
    tracemalloc.start()
    with pytest.raises(DataError):
        load_onnx(tmp_path / "m.onnx")
    assert tracemalloc.get_traced_memory()[1] < n_bytes / 4
    tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"\x08\x09", None])
def test_a_file_that_is_no_onnx_is_told(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel, data: bytes | None
) -> None:
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-40] if data is None else data)
    with pytest.raises(DataError, match=r"(?s)m\.onnx cannot be loaded by onnxr.*export again"):
        load_onnx(path)


def test_an_opset_that_is_too_new_asks_for_a_newer_version(
    load_onnx: Any, tmp_path: Path, write_model: WriteModel
) -> None:
    onnx = pytest.importorskip("onnx")
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, path)
    with pytest.raises(SetupError, match=r"too old for .*m\.onnx: .*opset") as caught:
        load_onnx(path)
    assert "pip install --upgrade onnxruntime" in str(caught.value)


@pytest.mark.parametrize("reason", ["Failed to allocate memory for 9 bytes", "std::bad_alloc"])
def test_no_memory_for_a_batch_is_no_fault_of_the_file(
    load_onnx: Any,
    tmp_path: Path,
    write_model: WriteModel,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    import onnxruntime

    class Full(onnxruntime.InferenceSession):
        def run(self, *_: Any) -> Any:
            raise RuntimeError(reason)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Full)
    backend = load_onnx(write_model(tmp_path / "m.onnx"))
    with pytest.raises(ResourceError, match=r"m\.onnx cannot be run .*\n  Use smaller batches"):
        backend.run(IMAGES.astype(np.float32))


def test_onnxruntimes_warnings_on_unknown_graphics_cards_are_dropped_and_other_lines_kept(
    tmp_path: Path,
) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import os\n"
        "os.write(2, b'[W:onnxruntime:Default, device_discovery.cc:164] no vendor\\n')\n"
        "os.write(2, b'something else\\n')\n"
        "class InferenceSession: pass\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        " from kdedge.targets.onnx import ONNX_RUNTIME; ONNX_RUNTIME.load()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "something else\n"


@pytest.mark.parametrize("without", ["tempfile.tempdir = '/nowhere'", "del os.memfd_create"])
def test_onnxruntime_is_imported_where_nothing_can_be_written(tmp_path: Path, without: str) -> None:
    (tmp_path / "onnxruntime.py").write_text("class InferenceSession: pass\n")
    code = (
        f"import os, sys, tempfile; sys.path.insert(0, {str(tmp_path)!r}); {without};"
        " from kdedge.targets.onnx import ONNX_RUNTIME;"
        " before = os.listdir('/proc/self/fd'); ONNX_RUNTIME.load();"
        " assert os.listdir('/proc/self/fd') == before"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(("policy", "spin"), [("PASSIVE", "0"), ("active", None)])
def test_threads_are_those_of_the_environment_and_spin_as_it_says(
    load_onnx: Any,
    tmp_path: Path,
    write_model: WriteModel,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    spin: str | None,
) -> None:
    import onnxruntime

    seen: list[Any] = []

    class Watched(onnxruntime.InferenceSession):
        def __init__(self, path: str, options: Any, **others: Any) -> None:
            seen.append(options)
            super().__init__(path, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Watched)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    path = write_model(tmp_path / "m.onnx")
    load_onnx(path)
    load_onnx(path, n_threads=2)
    assert [options.intra_op_num_threads for options in seen] == [3, 2]
    for options in seen:
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        if spin is not None:
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == spin


@pytest.mark.parametrize("place", range(8))
def test_a_text_in_the_file_that_is_no_utf8_is_told(
    load_onnx: Any,
    tmp_path: Path,
    write_model: WriteModel,
    capsys: pytest.CaptureFixture[str],
    place: int,
) -> None:
    path = write_model(tmp_path / "m.onnx")
    data = bytearray(path.read_bytes())
    data[data.index(b"images") + place] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"m\.onnx"):
        load_onnx(path)
    assert capsys.readouterr().out == ""
