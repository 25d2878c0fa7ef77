"""ModelOpt's quantizer at work: what it reads, and that it leaves and says nothing."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.errors import GateError, MissingPackage, ResourceError
from kdedge.targets.onnx.half import absolute_maxima
from kdedge.targets.onnx.modelopt import Calibration, insert_qdq

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("modelopt.onnx.quantization")


@pytest.mark.parametrize("method", ["max", "entropy"])
def test_it_prints_nothing_and_leaves_no_file_and_no_setting_behind(
    folded_graph: Any,
    folded_images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    method: Calibration,
) -> None:
    for name in ("cwd", "tmp", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    output = tmp_path / "out" / "model.onnx"

    insert_qdq(folded_graph, output, folded_images, method=method)

    assert capfd.readouterr() == ("", "")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "cwd",
        "out",
        "tmp",
    ]
    assert tempfile.tempdir == str(tmp_path / "tmp")
    assert logging.getLogger("modelopt.onnx").filters == []


def test_the_graph_that_is_given_stays_as_it_was(
    folded_graph: Any, folded_images: np.ndarray, tmp_path: Path
) -> None:
    before = folded_graph.SerializeToString()
    insert_qdq(folded_graph, tmp_path / "model.onnx", folded_images, method="max")
    assert folded_graph.SerializeToString() == before


def activation(graph: Any) -> str:
    """The input of an MLP's second product: the numbers of names depend on torch's version."""
    made_by = {node.output[0]: node.op_type for node in graph.graph.node}
    inputs = [node.input[0] for node in graph.graph.node if node.op_type == "MatMul"]
    return next(name for name in inputs if made_by.get(name) == "Mul")


def test_ranges_come_from_every_image(
    folded_graph: Any, folded_images: np.ndarray, tmp_path: Path
) -> None:
    largest = [absolute_maxima(folded_graph, folded_images[i : i + 1]) for i in range(24)]
    name = activation(folded_graph)
    alone = [maxima[name] for maxima in largest]
    order = np.argsort(alone)[-17:]  # the largest in the last of three runs
    for chosen in (order[:-1], order):
        images = folded_images[chosen]
        model = insert_qdq(folded_graph, tmp_path / "model.onnx", images, method="max")
        (scale,) = (t for t in model.graph.initializer if t.name == f"{name}_scale")
        expected = alone[chosen[-1]] / 127
        assert onnx.numpy_helper.to_array(scale) == pytest.approx(expected, rel=1e-5)
    assert alone[order[-1]] > 1.001 * alone[order[-2]]


def test_calibration_that_reads_only_some_of_the_images_is_refused(
    folded_graph: Any, folded_images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_one_run(
        path: str, *, output_path: str, calibration_data_reader: Any, **_: Any
    ) -> None:
        calibration_data_reader.get_next()
        Path(output_path).write_bytes(Path(path).read_bytes())

    monkeypatch.setattr(quantization, "quantize", read_one_run)
    with pytest.raises(GateError, match="ModelOpt read only 8 of 24 calibration images"):
        insert_qdq(folded_graph, tmp_path / "model.onnx", folded_images, method="max")
    assert list(tmp_path.iterdir()) == []


def test_its_errors_are_told_in_our_log_and_its_other_lines_are_dropped(
    folded_graph: Any,
    folded_images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def complain(*_: Any, **__: Any) -> None:
        logger = logging.getLogger("modelopt.onnx")
        logger.error("Failed to read GPU count")
        logger.warning("a warning")
        logger.error("this operator is unknown")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantization, "quantize", complain)
    with pytest.raises(ResourceError, match=r"model\.onnx could not be written: the disk is full"):
        insert_qdq(folded_graph, tmp_path / "model.onnx", folded_images, method="max")
    assert caplog.messages == ["ModelOpt: this operator is unknown"]
    assert caplog.records[0].name.startswith("kdedge.")


def test_where_it_is_not_installed_the_extra_is_named(
    folded_graph: Any, folded_images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(MissingPackage, match=r"nvidia-modelopt.*\n.*kdedge\[export\]"):
        insert_qdq(folded_graph, tmp_path / "model.onnx", folded_images, method="max")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(
    folded_graph: Any, folded_images: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="could not be written: no such file or directory"):
        insert_qdq(folded_graph, tmp_path / "no" / "model.onnx", folded_images, method="max")
