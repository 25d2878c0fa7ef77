"""OpenVINO's files of an artifact: what is built, from what, and how it is listed."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.artifacts.build import build_files
from kdedge.errors import DataError, ResourceError
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.targets.base import BuildRequest
from kdedge.targets.openvino import TARGET
from kdedge.targets.openvino import build as target
from kdedge.targets.registry import find_target

openvino = pytest.importorskip("openvino")

WithFlags = Callable[[str], None]
VERSION = openvino.__version__.partition("-")[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_built_compared_and_listed(artifact: Artifact) -> None:
    precisions: Any = ["fp16", "fp32", "int8"]
    found, names = build_files(artifact, find_target("openvino"), precisions, inputs=None)
    assert load_artifact(artifact.path) == found
    entries = {file.name: file for file in found.files if file.target == "openvino"}
    assert {name: (file.precision, file.data) for name, file in entries.items()} == {
        "model.xml": ("fp32", "model.bin"),
        "model.fp16.xml": ("fp16", "model.fp16.bin"),
        "model.int8.xml": ("int8", "model.int8.bin"),
    }
    sources = {file.precision: file.sha256 for file in artifact.files}
    for file in entries.values():
        assert file.made_from == sources["int8" if file.precision == "int8" else "fp32"]
    assert names == ("model.fp16.xml", "model.xml", "model.int8.xml")
    for file in entries.values():
        assert file.data is not None
        path, data = found.path / file.name, found.path / file.data
        assert (file.device, file.gate) == ("cpu", "passed")
        assert file.sha256 == sha256(path)
        assert str(artifact.path).encode() not in path.read_bytes()
        assert found.others[file.data] == sha256(data)
        assert file.n_bytes == path.stat().st_size + data.stat().st_size
        assert file.parity.runtime == f"openvino {VERSION} CPU"
        assert {k: file.built_with[k] for k in ("tool", "version")} == {
            "tool": "OpenVINO",
            "version": VERSION,
        }
    sizes = [(artifact.path / f"model{kind}.bin").stat().st_size for kind in ("", ".fp16", ".int8")]
    assert sizes == sorted(sizes, reverse=True)
    distances = {name: file.parity.mean_softmax_distance for name, file in entries.items()}  # type: ignore[union-attr]
    assert distances["model.xml"] < 1e-6


def constant(node: Any) -> np.ndarray:
    """Value of a node of a graph that depends on no input, computed in float64."""
    kind = node.get_type_name()
    if kind == "Constant":
        return np.asarray(node.data, np.float64)
    first, *others = [constant(one.get_source_output().get_node()) for one in node.inputs()]
    if kind == "Multiply":
        return first * others[0]
    if kind == "Subtract":
        return first - others[0]
    assert kind in ("Reshape", "Convert")
    return first.reshape(node.get_output_shape(0))


def int8_weights(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Integers and real values of each quantized weight, in the graph's order."""
    found = []
    for one in openvino.Core().read_model(path).get_ordered_ops():
        is_int8 = one.get_type_name() == "Constant" and one.get_element_type() == openvino.Type.i8
        if is_int8 and len(one.get_output_shape(0)) > 1:
            scaled = one
            while scaled.get_type_name() != "Multiply":
                scaled = next(iter(scaled.output(0).get_target_inputs())).get_node()
            found.append((constant(one), constant(scaled)))
    return found


def test_where_products_of_bytes_can_overflow_weights_have_seven_bits_and_the_same_values(
    artifact: Artifact, with_flags: WithFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (source,) = [artifact.path / one.name for one in artifact.files if one.precision == "int8"]
    file = TARGET.plan("int8")
    made = {}
    for flags in ("avx2", "avx2 avx_vnni"):
        with_flags(flags)
        folder = tmp_path / flags
        folder.mkdir()
        built = target.build(file, BuildRequest(artifact, folder / file.name, onnx_path=source))
        assert built.get("weight_levels") == (64 if flags == "avx2" else None)
        made[flags] = int8_weights(folder / "model.int8.xml")
    assert len(made["avx2"]) == len(made["avx2 avx_vnni"]) > 0
    for (small, less), (large, more) in zip(made["avx2"], made["avx2 avx_vnni"], strict=True):
        assert abs(large).max() == 127
        assert abs(small).max() == 64
        # Half a step of the coarser integers
        step = abs(more).max(axis=0, keepdims=True) / 64
        assert (abs(less - more) <= 0.5 * step * 1.001).all()


def test_files_that_are_there_are_kept_and_changed_weights_are_not(artifact: Artifact) -> None:
    first, names = build_files(artifact, find_target("openvino"), ["fp32"], inputs=None)
    times = {path.name: path.stat().st_mtime_ns for path in artifact.path.glob("model*")}
    assert build_files(first, find_target("openvino"), ["fp32"], inputs=None) == (first, names)
    assert {path.name: path.stat().st_mtime_ns for path in artifact.path.glob("model*")} == times
    weights = artifact.path / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"model\.bin.* has changed since the export"):
        build_files(first, find_target("openvino"), ["fp32"], inputs=None)


def test_a_damaged_onnx_file_is_told(artifact: Artifact) -> None:
    path = artifact.path / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])
    file = TARGET.plan("fp32")
    with pytest.raises(DataError, match=r"model\.onnx cannot be read by openvino"):
        target.build(file, BuildRequest(artifact, artifact.path / file.name, onnx_path=path))
    assert not list(artifact.path.glob("*.xml")) + list(artifact.path.glob(".model*"))


def test_a_full_disk_leaves_nothing_behind(
    artifact: Artifact, small_disk: Callable[[int], Path]
) -> None:
    folder = small_disk(100)
    file = TARGET.plan("fp32")
    request = BuildRequest(artifact, folder / file.name, onnx_path=artifact.path / "model.onnx")
    with pytest.raises(ResourceError, match=r"model\.xml could not be written"):
        target.build(file, request)
    assert list(folder.iterdir()) == []


def test_building_needs_neither_torch_nor_onnx(artifact: Artifact) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'onnxruntime'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from kdedge.artifacts.build import build_files\n"
        "from kdedge.targets.registry import find_target\n"
        "from kdedge.runtime.artifact import load_artifact\n"
        "target = find_target('openvino')\n"
        "build_files(load_artifact(Path(sys.argv[1])), target, ['fp32', 'int8'], inputs=None)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(artifact.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (artifact.path / "model.int8.xml").is_file()


def test_only_the_blocks_linear_layers_are_quantized(
    artifact: Artifact, with_flags: WithFlags
) -> None:
    with_flags("avx2 avx_vnni")  # of weights with seven bits, only the values are others
    build_files(artifact, find_target("openvino"), ["int8"], inputs=None)
    model = openvino.Core().read_model(artifact.path / "model.int8.xml")
    quantized = set()
    for operator in model.get_ops():
        sources = [port.get_source_output().get_node() for port in operator.inputs()]
        is_product = operator.get_type_name() in ("MatMul", "Convolution")
        names = [source.get_friendly_name() for source in sources]
        dequantized = [name.endswith(("/DequantizeLinear", "/weight")) for name in names]
        if is_product and any(dequantized):
            assert all(dequantized)
            quantized.add(operator.get_friendly_name())
    linear = ("query", "key", "value", "out", "mlp.c_fc", "mlp.c_proj")
    assert quantized == {f"blocks.{block}.{name}/MatMul" for block in range(3) for name in linear}
