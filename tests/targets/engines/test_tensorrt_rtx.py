"""TensorRT-RTX engines, built for real: the package needs no GPU for that."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kdedge.errors import KdedgeError, MissingPackage, SetupError
from kdedge.targets.engines.builder import EngineBuilder, in_a_thread
from kdedge.targets.engines.package import open_log
from kdedge.targets.tensorrt_rtx import build as target

tensorrt_rtx = pytest.importorskip("tensorrt_rtx")


PRECISIONS = ("fp32", "fp16", "int8")
PRODUCTS = {
    "fp32": {"FLOAT": 28},
    # The class token's features, their projection and the fused head
    "fp16": {"HALF": 25, "FLOAT": 3},
    # Six linear layers in each of three blocks; patches and attention stay half
    "int8": {"INT8": 18, "HALF": 7, "FLOAT": 3},
}
VERSION = ".".join(tensorrt_rtx.__version__.split(".")[:3])
EVERY_BATCH = {"min": 1, "opt": 4, "max": 4}
SINGLE_IMAGES = {"min": 1, "opt": 1, "max": 1}
CONVOLUTION = (("Conv", ("images", "weight")), ("Flatten", ("between 0",)))

WriteGraph = Callable[..., Path]
Build = Callable[..., Any]
Refusal = Callable[..., str]


@pytest.fixture
def build(build_engine: Build) -> Build:
    return functools.partial(build_engine, target)


@pytest.fixture
def refusal(build: Build, tmp_path: Path) -> Refusal:
    """Gives the message of a build that has to be refused, and that leaves nothing."""

    def ask(onnx_path: Path) -> str:
        (tmp_path / "out").mkdir()
        with pytest.raises(KdedgeError) as caught:
            build(onnx_path, tmp_path / "out", precision="fp32")
        assert list((tmp_path / "out").iterdir()) == []
        return f"{type(caught.value).__name__}: {caught.value}"

    return ask


# Operators that may be between a dequantization and its product, and change no value
SHAPE_ONLY = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


def count_products(onnx_path: Path) -> dict[str, int]:
    """Matrix products and convolutions of a file's network, by TensorRT's name of their type.

    INT8 where both operands come from 8-bit integers, so that the product can run on them.
    """
    log = open_log(tensorrt_rtx)
    builder = tensorrt_rtx.Builder(log)
    network = builder.create_network(0)
    assert tensorrt_rtx.OnnxParser(network, log).parse_from_file(str(onnx_path))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {one.get_output(i).name: one for one in layers for i in range(one.num_outputs)}

    def is_dequantized(tensor: Any) -> bool:
        layer = makers.get(tensor.name)
        while layer is not None and layer.type.name in SHAPE_ONLY:
            layer = makers.get(layer.get_input(0).name)
        return layer is not None and layer.type.name == "DEQUANTIZE"

    def type_of(product: Any) -> str:
        inputs = [product.get_input(index) for index in range(product.num_inputs)]
        operands = [tensor for tensor in inputs if tensor is not None][:2]
        is_int8 = len(operands) == 2 and all(map(is_dequantized, operands))
        return "INT8" if is_int8 else str(operands[0].dtype.name)

    products = ("MATRIX_MULTIPLY", "CONVOLUTION")
    return dict(Counter(type_of(layer) for layer in layers if layer.type.name in products))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_have_the_files_precision(onnx_files: dict[str, Path], precision: str) -> None:
    assert count_products(onnx_files[precision]) == PRODUCTS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_of_a_cnn_has_the_files_precision(
    build: Build, cnn_files: dict[str, Path], tmp_path: Path, no_gpu: None, precision: Any
) -> None:
    from kdedge.targets.onnx.graph import load_graph, wide_convs

    build(cnn_files[precision], tmp_path, precision=precision)
    counted = count_products(cnn_files[precision])
    n_wide = len(wide_convs(load_graph(cnn_files["fp32"])))
    assert n_wide > 0
    assert counted.get("INT8", 0) == (n_wide if precision == "int8" else 0)
    n_head = 2  # features and fused head
    assert counted["FLOAT"] == (sum(counted.values()) if precision == "fp32" else n_head)


def test_an_engine_with_open_classes_is_built_and_has_no_class_in_it(
    build: Build, open_onnx: Path, tmp_path: Path, no_gpu: None
) -> None:
    built = build(open_onnx, tmp_path, precision="fp32")
    assert built.built_with["profiles"] == [EVERY_BATCH, SINGLE_IMAGES]
    # One product less than with the fused head
    assert count_products(open_onnx) == {"FLOAT": PRODUCTS["fp32"]["FLOAT"] - 1}


@pytest.fixture
def builder() -> EngineBuilder:
    return EngineBuilder(tensorrt_rtx, title="TensorRT-RTX", timing_cache=None)


def edited(source: Path, path: Path, edit: Callable[[Any], None], **options: Any) -> Path:
    """Writes an ONNX file with something changed."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(source)
    edit(model)
    onnx.save(model, path, **options)
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_is_built_in_silence_without_a_gpu_and_its_record_says_how(
    build: Build,
    onnx_files: dict[str, Path],
    tmp_path: Path,
    no_gpu: None,
    capfd: pytest.CaptureFixture[str],
    precision: Any,
) -> None:
    built = build(onnx_files[precision], tmp_path, precision=precision)
    assert capfd.readouterr() == ("", "")
    assert built.path == tmp_path / f"model.{precision}.rtx{VERSION}.engine"
    assert list(tmp_path.iterdir()) == [built.path]
    assert built.built_with == {
        "tool": "TensorRT-RTX",
        "version": tensorrt_rtx.__version__,
        "device": "RTX GPUs of compute capability 8.0, 8.6, 8.9, 12.0 and later",
        "compute_capability": None,
        "profiles": [EVERY_BATCH, SINGLE_IMAGES],
    }
    runtime = tensorrt_rtx.Runtime(open_log(tensorrt_rtx))
    malformed = int(tensorrt_rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    _, of_engine = runtime.get_engine_validity(built.path.read_bytes())
    assert not int(of_engine) & malformed


@pytest.mark.parametrize("domain", ["", "custom.operators"])
def test_a_node_that_the_parser_refuses_is_named(
    refusal: Refusal, onnx_files: dict[str, Path], tmp_path: Path, domain: str
) -> None:
    def replace(model: Any) -> None:
        node = next(node for node in model.graph.node if node.name == "blocks.1.query/MatMul")
        node.op_type, node.domain = "Frobnicate", domain
        if domain:
            model.opset_import.add(domain=domain, version=1)

    path = edited(onnx_files["fp32"], tmp_path / "odd.onnx", replace)
    said = refusal(path)
    assert said.startswith(f"SetupError: TensorRT-RTX {tensorrt_rtx.__version__} cannot read")
    assert "[Frobnicate -> " in said
    assert "Node name: blocks.1.query/MatMul" in said


def test_weights_beside_the_graph_are_built_in_and_missing_ones_named(
    build: Build, refusal: Refusal, onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    options = {"save_as_external_data": True, "location": data.name}
    edited(onnx_files["fp32"], path, lambda model: None, **options)
    built = build(path, tmp_path, precision="fp32")
    assert built.path.stat().st_size > data.stat().st_size
    data.unlink()
    assert f"Failed to open file: {data}" in refusal(path)


@pytest.mark.parametrize("kept", [None, 0.5, 0.999])
def test_a_torn_or_missing_file_is_refused(
    refusal: Refusal, onnx_files: dict[str, Path], tmp_path: Path, kept: float | None
) -> None:
    data = onnx_files["fp32"].read_bytes()
    path = tmp_path / "torn.onnx"
    if kept is not None:
        path.write_bytes(data[: int(kept * len(data))])
    said = refusal(path)
    assert f"cannot read {path}.\n" in said
    assert kept is None or "Failed to parse the ONNX model" in said


@pytest.mark.parametrize(
    ("in_graph", "batch", "max_batch", "profiles"),
    [
        (3, 3, 4, [{"min": 3, "opt": 3, "max": 3}]),
        (1, "dynamic", 1, [SINGLE_IMAGES]),
        ("batch", 3, 4, [{"min": 3, "opt": 3, "max": 3}]),
        ("batch", "dynamic", 1, [SINGLE_IMAGES]),
        ("batch", "dynamic", 4, [EVERY_BATCH, SINGLE_IMAGES]),
    ],
)
def test_a_profile_takes_every_batch_that_is_asked_for(
    build: Build,
    write_graph: WriteGraph,
    tmp_path: Path,
    in_graph: Any,
    batch: Any,
    max_batch: int,
    profiles: list[Any],
) -> None:
    inputs = {"images": (in_graph, 3, 32, 32)}
    graph = write_graph(tmp_path / "a.onnx", inputs, CONVOLUTION, (in_graph, 5))
    built = build(graph, tmp_path, precision="fp32", max_batch=max_batch, batch=batch)
    assert built.built_with["profiles"] == profiles


def test_a_build_that_fails_lets_go_of_its_builder_at_once(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Freed by the garbage collector within the next builder's constructor, it never returns
    builders: list[weakref.ref[Any]] = []
    construct = tensorrt_rtx.Builder

    def remembered(log: Any) -> Any:
        builder = construct(log)
        builders.append(weakref.ref(builder))
        return builder

    monkeypatch.setattr(tensorrt_rtx, "Builder", remembered)
    gc.disable()
    try:
        with pytest.raises(SetupError) as caught:
            build(tmp_path / "none.onnx", tmp_path, precision="fp32")
        assert [reference() for reference in builders] == [None]
    finally:
        gc.enable()
    assert caught.value.__traceback__ is not None


def wait_for(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.01)


def test_ctrl_c_ends_a_build(onnx_files: dict[str, Path], tmp_path: Path) -> None:
    given: list[Any] = []

    def construct(log: Any) -> Any:
        real = tensorrt_rtx.Builder(log)

        def serialize(network: Any, config: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: not config.progress_monitor.step_complete("a phase", 0))
            given.append((real.build_serialized_network(network, config), list(log.errors)))
            return given[0][0]

        return SimpleNamespace(
            create_network=real.create_network,
            create_builder_config=real.create_builder_config,
            create_optimization_profile=real.create_optimization_profile,
            build_serialized_network=serialize,
        )

    module = ModuleType("tensorrt_rtx")
    vars(module).update(vars(tensorrt_rtx) | {"Builder": construct})
    builder = EngineBuilder(module, title="TensorRT-RTX", timing_cache=None)
    with pytest.raises(KeyboardInterrupt):
        builder.build(onnx_files["fp16"], tmp_path / "m.engine", batches=(1, 4))
    wait_for(lambda: bool(given))  # the signal may come before the executor knows its thread
    ((engine, errors),) = given
    assert engine is None
    assert any("BuildCanceled" in error for error in errors)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_build_that_has_just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    canceled, ended, start = threading.Event(), threading.Event(), threading.Thread.start

    def build() -> Any:
        canceled.wait()
        ended.set()

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        in_a_thread(build, canceled, "Building")
    assert ended.wait(30)


def test_a_long_build_says_that_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kdedge.targets.engines.builder")

    def work() -> bytes:
        wait_for(lambda: bool(caplog.messages))
        return b"engine"

    found = in_a_thread(work, threading.Event(), "Building m", report_every_s=0.05)
    assert found == b"engine"
    assert caplog.messages[0] == "Building m: 0 s so far."


def test_the_log_keeps_errors_and_leaves_the_terminal_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log, kinds = open_log(tensorrt_rtx), tensorrt_rtx.ILogger
    for severity in (kinds.VERBOSE, kinds.INFO, kinds.WARNING, kinds.ERROR, kinds.INTERNAL_ERROR):
        log.log(severity, f" {severity.name} \n")
    assert log.errors == ["ERROR", "INTERNAL_ERROR"]
    assert capfd.readouterr() == ("", "")


COLLECTS = """
import gc, logging
import tensorrt_rtx as trt
from kdedge.targets.engines.package import open_log

class Collect(logging.Handler):
    def emit(self, record):
        gc.collect()

logging.getLogger("kdedge").addHandler(Collect())
logging.getLogger("kdedge").setLevel(logging.DEBUG)
gc.disable()
cycle = [trt.Runtime(open_log(trt))]
cycle.append(cycle)
del cycle
trt.Runtime(open_log(trt))
print(gc.collect() > 0)
"""


def test_garbage_that_is_an_engine_does_not_stop_the_next_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECTS], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_missing_package_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackage, match=r"pip install 'kdedge\[trt-rtx\]'"):
        target.plan("fp16")
