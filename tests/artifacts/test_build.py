"""Engines of an artifact, built for real by TensorRT-RTX from small ONNX files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.artifacts.build import build_files
from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, write_smoke_set
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.records.evaluation import Gates
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact
from kdedge.runtime.preprocess import Preprocess
from kdedge.targets.registry import find_target
from kdedge.targets.tensorrt_rtx import build as rtx

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
onnx = pytest.importorskip("onnx")

SIZE_PX, NAMES = 8, ("a", "b", "c")


@pytest.fixture(autouse=True)
def _no_gpu(no_gpu: None) -> None:
    """Engines are built, and none runs."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_model(path: Path, precision: str, *, factor: float = 1.0, external: bool = False) -> None:
    """Writes a graph of one convolution, in float32 or in FP16 between float32 ends."""
    from onnx import TensorProto, helper, numpy_helper

    weight = factor * np.random.default_rng(0).random((3, 3, SIZE_PX, SIZE_PX))
    if precision == "fp32":
        nodes = [
            helper.make_node("Conv", ["images", "weight"], ["sums"], name="patch_conv/Conv"),
            helper.make_node("Flatten", ["sums"], ["logits"]),
        ]
        weight = weight.astype(np.float32)
    else:
        nodes = [
            helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Conv", ["half", "weight"], ["sums"], name="patch_conv/Conv"),
            helper.make_node("Cast", ["sums"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["logits"]),
        ]
        weight = weight.astype(np.float16)
    shapes = {"images": ("batch", 3, SIZE_PX, SIZE_PX), "logits": ("batch", 3)}
    images, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    constants = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "graph", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = {"location": f"{path.name}.data", "size_threshold": 0} if external else {}
    onnx.save(model, path, save_as_external_data=external, **options)


def list_model(path: Path, precision: Any, **changes: Any) -> ModelFile:
    values = {"precision": precision, "device": "any", "gate": "passed", **changes}
    return ModelFile(path.name, "onnx", sha256=sha256(path), n_bytes=path.stat().st_size, **values)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """An artifact with a float32 and an FP16 graph, and one for CPUs."""
    folder = tmp_path / "line 3"
    folder.mkdir()
    files = {"model.onnx": "fp32", "model.fp16.onnx": "fp16"}
    for name, precision in files.items():
        write_model(folder / name, precision)
    (folder / "model.int8.cpu.onnx").write_bytes(b"for CPUs alone")
    found = Artifact(
        path=folder,
        name="line3",
        class_names=NAMES,
        preprocess=Preprocess(SIZE_PX, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        pixels="float",
        head="scores",
        max_batch=4,
        batch="dynamic",
        files=(
            *(list_model(folder / name, precision) for name, precision in files.items()),
            list_model(folder / "model.int8.cpu.onnx", "int8", device="cpu"),
        ),
    )
    found.save()
    return found


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Name -> hash and time of change, of all in a folder."""
    return {path.name: (sha256(path), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_engines_are_built_and_listed_with_what_made_them(artifact: Artifact) -> None:
    before = snapshot(artifact.path)
    found, names = build_files(artifact, find_target("tensorrt-rtx"), ["fp32", "fp16"], inputs=None)
    assert load_artifact(artifact.path) == found
    assert found.files[:3] == artifact.files
    for engine, source in zip(found.files[3:], artifact.files[:2], strict=True):
        assert engine.name == rtx.plan(source.precision).name
        path = artifact.path / engine.name
        assert engine.sha256 == sha256(path)
        assert engine.n_bytes == path.stat().st_size
        assert engine.made_from == source.sha256
        assert (engine.target, engine.precision, engine.device) == (
            "tensorrt-rtx",
            source.precision,
            "gpu",
        )
        assert (engine.gate, engine.parity, engine.data) == ("not measured", None, None)
        assert engine.built_with["tool"] == "TensorRT-RTX"
        assert engine.built_with["profiles"][0] == {"min": 1, "opt": 4, "max": 4}
    after = snapshot(artifact.path)
    assert names == tuple(file.name for file in found.files[3:])
    assert after.keys() == before.keys() | set(names)
    assert all(after[name] == before[name] for name in before if name != "artifact.json")
    written = json.loads((artifact.path / "artifact.json").read_text())["files"]
    assert [file["gate"] for file in written] == ["passed"] * 3 + ["not measured"] * 2


def test_a_second_call_keeps_what_is_there_and_builds_what_was_deleted(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kdedge.artifacts.build")
    first, (name,) = build_files(artifact, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    assert caplog.messages[0] == f"Building {name} from model.fp16.onnx."
    before = snapshot(artifact.path)
    caplog.clear()
    second, _ = build_files(
        load_artifact(artifact.path), find_target("tensorrt-rtx"), ["fp16"], inputs=None
    )
    assert second == first
    assert snapshot(artifact.path) == before
    assert caplog.messages[0] == f"Keeping {name}, which was built from this model.fp16.onnx."
    assert caplog.messages[1].startswith(f"{name} is not compared with the model: ")
    (artifact.path / name).unlink()
    third, _ = build_files(second, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    assert third.file(name).sha256 == sha256(artifact.path / name)
    assert len(third.files) == len(first.files)


@pytest.fixture
def gpu(
    cudart: Any, host_gpu: Any, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> Callable[[np.ndarray], None]:
    """Lets engines run on a GPU of host memory and give these logits for the smoke set's images."""

    def give(logits: np.ndarray) -> None:
        def logits_of(pixels: np.ndarray) -> np.ndarray:  # whose value is the image's number
            return logits[np.rint(255 * pixels[:, 0, 0, 0]).astype(int)]

        monkeypatch.setattr(host_gpu, "N_CLASSES", logits.shape[1])
        monkeypatch.setattr(host_gpu.HostContext, "compute", staticmethod(logits_of))
        runtime = host_gpu.HostTensorRT.Runtime

        class Runtime(runtime):
            def deserialize_cuda_engine(self, data: bytes) -> Any:
                return host_gpu.HostEngine(1, 4, "FLOAT", "logits", SIZE_PX)

        for name in ("Runtime", "TensorIOMode"):
            there = {"Runtime": Runtime, "TensorIOMode": host_gpu.Mode}[name]
            monkeypatch.setattr(tensorrt_rtx, name, there)

    return give


@pytest.mark.parametrize(("n_wrong", "gate"), [(1, "passed"), (2, "missed")])
def test_where_an_engine_runs_its_own_logits_decide_its_gate(
    artifact: Artifact, gpu: Any, cudart: Any, n_wrong: int, gate: str
) -> None:
    artifact, logits = with_smoke_set(artifact)
    given = logits.copy()
    given[:n_wrong] = -given[:n_wrong]
    gpu(given)
    found, (name,) = build_files(artifact, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    engine = load_artifact(artifact.path).file(name)
    assert engine == found.file(name)
    assert engine.gate == gate
    assert engine.parity.agreement_percent == 10 * (10 - n_wrong)
    assert engine.parity.runtime == f"tensorrt-rtx {tensorrt_rtx.__version__} GPU 8.7"
    assert (cudart.allocated, cudart.streams) == ({}, set())


def test_an_engine_that_does_not_load_is_not_measured(
    artifact: Artifact, cudart: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT-RTX itself finds no GPU, whatever the GPU of host memory says."""
    artifact, _ = with_smoke_set(artifact)
    _, (name,) = build_files(artifact, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    assert load_artifact(artifact.path).file(name).gate == "not measured"
    said = [
        text
        for text in caplog.messages
        if text.startswith(f"{name} is not compared with the model: ")
    ]
    assert len(said) == 1
    assert "cannot be loaded" in said[0]


def with_smoke_set(artifact: Artifact) -> tuple[Artifact, np.ndarray]:
    """The artifact with ten images, whose pixels are their numbers, and their logits [10, 3]."""
    pixels = np.zeros((10, SIZE_PX, SIZE_PX, 3), np.uint8)
    pixels += np.arange(10, dtype=np.uint8)[:, None, None, None]
    logits = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    write_smoke_set(artifact.path / SMOKE_SET, SmokeSet(pixels, logits))
    found = dataclasses.replace(
        artifact,
        others={SMOKE_SET: sha256(artifact.path / SMOKE_SET)},
        gates=Gates({"fp16": 90.0}, max_drop=1.0),
    )
    found.save()
    return found, logits


def test_an_engine_that_is_not_of_this_graph_is_in_the_way(artifact: Artifact) -> None:
    built, (name,) = build_files(artifact, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    path = artifact.path / name
    data = path.read_bytes()
    with pytest.raises(DataError, match=r"is not listed as built from this model\.fp16"):
        build_files(artifact, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"\.engine has changed since the export"):
        build_files(built, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    path.write_bytes(data)
    write_model(artifact.path / "model.fp16.onnx", "fp16", factor=2.0)
    newer = built.with_files(list_model(artifact.path / "model.fp16.onnx", "fp16"))
    newer.save()
    before = snapshot(artifact.path)
    with pytest.raises(DataError) as caught:
        build_files(newer, find_target("tensorrt-rtx"), ["fp16"], inputs=None)
    assert str(caught.value) == (
        f"{path} exists, but is not listed as built from this model.fp16.onnx.\n"
        "  It is not overwritten: delete it and try again."
    )
    assert snapshot(artifact.path) == before


def test_an_engine_of_other_weights_beside_the_graph_is_in_the_way(artifact: Artifact) -> None:
    path = artifact.path / "model.onnx"
    write_model(path, "fp32", external=True)
    data = artifact.path / "model.onnx.data"
    found = dataclasses.replace(
        artifact,
        files=(list_model(path, "fp32", data=data.name),),
        others={data.name: sha256(data)},
    )
    built, _ = build_files(found, find_target("tensorrt-rtx"), ["fp32"], inputs=None)
    assert built.files[1].built_with["onnx_data"] == sha256(data)
    assert build_files(built, find_target("tensorrt-rtx"), ["fp32"], inputs=None)[0] == built
    data.unlink()  # onnx would write behind what is there
    write_model(path, "fp32", external=True, factor=2.0)
    assert sha256(path) == built.files[0].sha256  # the graph alone is the same
    newer = dataclasses.replace(built, others={data.name: sha256(data)})
    with pytest.raises(DataError, match=r"is not listed as built from this model\.onnx"):
        build_files(newer, find_target("tensorrt-rtx"), ["fp32"], inputs=None)


@pytest.mark.parametrize("changed", ["model.fp16.onnx", "model.onnx.data"])
def test_a_graph_that_is_not_the_exported_one_is_refused_before_it_is_parsed(
    artifact: Artifact, changed: str
) -> None:
    path, precision = artifact.path / changed, "fp16"
    if changed.endswith(".data"):
        write_model(artifact.path / "model.onnx", "fp32", external=True)
        source = list_model(artifact.path / "model.onnx", "fp32", data=changed)
        others, precision = {changed: sha256(path)}, "fp32"
        artifact = dataclasses.replace(artifact, files=(source,), others=others)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    artifact.save()
    before = snapshot(artifact.path)
    with pytest.raises(DataError, match="has changed since the export") as caught:
        build_files(artifact, find_target("tensorrt-rtx"), [precision], inputs=None)
    assert str(caught.value).startswith(str(path))
    assert snapshot(artifact.path) == before


@pytest.mark.parametrize("precisions", [["int8"], ["fp16", "int8"]])
def test_a_precision_that_was_not_exported_is_told_before_anything_is_built(
    artifact: Artifact, precisions: Any
) -> None:
    before = snapshot(artifact.path)
    with pytest.raises(RecipeError) as caught:
        build_files(artifact, find_target("tensorrt-rtx"), precisions, inputs=None)
    assert str(caught.value) == (
        f"{artifact.path} has no ONNX file in int8 to build from; it has model.onnx"
        " (fp32), model.fp16.onnx (fp16).\n"
        "  Export the run again: kdedge export RUN --int8"
    )
    assert snapshot(artifact.path) == before


def test_an_artifact_without_onnx_files_says_so(artifact: Artifact) -> None:
    with pytest.raises(RecipeError, match=r"it has none\.\n.*kdedge export RUN$"):
        build_files(
            dataclasses.replace(artifact, files=()),
            find_target("tensorrt-rtx"),
            ["fp32"],
            inputs=None,
        )


@pytest.mark.parametrize(
    ("precisions", "flags", "is_relative"),
    [(["fp16", "int8"], "--trt --int8", True), (["fp16"], "--trt", False)],
)
def test_without_tensorrt_the_step_for_the_device_is_told_and_nothing_is_built_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
    artifact: Artifact,
    precisions: Any,
    flags: str,
    is_relative: bool,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.chdir(artifact.path.parent)
    path = Path("line 3") if is_relative else artifact.path
    before = snapshot(artifact.path)
    with pytest.raises(SetupError) as caught:
        build_files(
            dataclasses.replace(artifact, path=path),
            find_target("tensorrt"),
            precisions,
            inputs=None,
        )
    first, *_, instead, where = str(caught.value).splitlines()
    assert first == (
        "Building and running TensorRT engines needs tensorrt, which is not installed."
    )
    assert where == (
        f"  The artifact {path} is complete without engines. To build them, copy it to the"
        " device and run there:"
        f" kdedge export '{path}' {flags}"
    )
    assert instead == (
        '  tensorrt-rtx is installed: use targets=["tensorrt-rtx"] to build engines for RTX GPUs'
        " (not for a Jetson). It is not used automatically."
    )
    assert snapshot(artifact.path) == before


def test_building_needs_neither_torch_nor_onnx(artifact: Artifact) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'open_clip', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from kdedge.artifacts.build import build_files\n"
        "from kdedge.targets.registry import find_target\n"
        "from kdedge.runtime.artifact import load_artifact\n"
        "target = find_target('tensorrt-rtx')\n"
        "found, _ = build_files(load_artifact(Path(sys.argv[1])), target, ['fp16'], inputs=None)\n"
        "print(found.files[-1].name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(artifact.path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{rtx.plan('fp16').name}\n"
    assert (artifact.path / rtx.plan("fp16").name).is_file()
