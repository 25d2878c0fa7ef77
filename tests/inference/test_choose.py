"""Which file is used: the best that this machine runs, and what needs asking for."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import logging
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from kdedge.errors import DataError, GateError, SetupError
from kdedge.inference.choose import choose_and_load, rank_files
from kdedge.inference.classify import Classifier
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.cpu_choice import CpuChoice, CpuMachine, keep_choice
from kdedge.runtime.none_of_these import GAUSSIANS_FILE, NoneBelow, NoneOfThese

SHA = "0" * 64
PAIR = ("fp16", "fp32")


def entry(name: str, **changes: Any) -> ModelFile:
    target = "onnx" if name.endswith(".onnx") else "tensorrt"
    values: dict[str, Any] = {"target": target, "precision": "fp32", "device": "any", **changes}
    return ModelFile(name, sha256=SHA, n_bytes=1, **values)


ALL = (
    entry("model.int8-cpu.onnx", precision="int8", device="cpu"),
    entry("model.int8.onnx", precision="int8", device="gpu"),
    entry("model.fp16.onnx", precision="fp16", device="gpu"),
    entry("model.onnx"),
    entry("model.int8.engine", precision="int8", device="gpu"),
    entry("model.fp32.engine", device="gpu"),
    entry("model.fp16.engine", precision="fp16", device="gpu"),
    entry("model.torch", target="torch-tensorrt", precision="fp16", device="gpu"),
)


def with_entries(artifact: Artifact, *files: ModelFile) -> Artifact:
    return dataclasses.replace(artifact, files=files)


@pytest.mark.parametrize(
    ("wishes", "names"),
    [
        (
            {},
            "model.fp16.engine model.fp32.engine model.onnx model.fp16.onnx"
            " model.int8.engine model.int8-cpu.onnx model.int8.onnx",
        ),
        ({"precision": "fp32"}, "model.fp32.engine model.onnx"),
        ({"precision": "int8"}, "model.int8.engine model.int8-cpu.onnx model.int8.onnx"),
        (
            {"backend": "onnxruntime"},
            "model.onnx model.fp16.onnx model.int8-cpu.onnx model.int8.onnx",
        ),
        ({"backend": "tensorrt", "precision": "fp16"}, "model.fp16.engine"),
        (
            {"chosen": "model.int8-cpu.onnx"},
            "model.fp16.engine model.fp32.engine model.int8-cpu.onnx model.onnx model.fp16.onnx"
            " model.int8.engine model.int8.onnx",
        ),
    ],
)
@pytest.mark.usefixtures("cudart")
def test_the_files_in_their_order(artifact: Artifact, wishes: dict[str, Any], names: str) -> None:
    ranked = rank_files(with_entries(artifact, *ALL), **wishes)
    assert [file.name for file in ranked] == names.split()


def test_engines_come_after_other_files_without_a_gpu(artifact: Artifact) -> None:
    names = [file.name for file in rank_files(with_entries(artifact, *ALL))]
    assert names[:2] == ["model.onnx", "model.fp16.onnx"]
    assert names[4:] == ["model.int8-cpu.onnx", "model.int8.onnx", "model.int8.engine"]


def test_a_file_that_missed_its_gate_is_used_only_when_asked_for(artifact: Artifact) -> None:
    missed = entry("model.fp16.onnx", precision="fp16", gate="missed")
    artifact = with_entries(artifact, missed)
    assert rank_files(artifact, chosen=missed.name) == []
    with pytest.raises(GateError, match='missed its gate; to use it add precision="fp16"'):
        load(artifact)
    assert rank_files(artifact, precision="fp16") == [missed]


def load(artifact: Artifact, **wishes: Any) -> tuple[ModelFile, Any]:
    pytest.importorskip("onnxruntime")
    return choose_and_load(
        artifact, **{"precision": None, "backend": None, "n_threads": None, **wishes}
    )


def test_without_its_engine_the_onnx_file_runs_and_nothing_is_said(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    file, _ = load(artifact.with_files(ALL[6]))
    assert file.name == "model.onnx"
    assert caplog.messages == []


def test_a_file_that_missed_its_gate_is_loaded_with_one_warning(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kdedge")
    load(
        artifact.with_files(dataclasses.replace(artifact.files[0], gate="missed")), precision="fp32"
    )
    (message,) = caplog.messages
    assert message.startswith("model.onnx missed its gate. It is used because fp32 was asked for")


def test_where_nothing_runs_each_file_says_why(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SetupError) as caught:
        choose_and_load(artifact.with_files(ALL[6]), precision=None, backend=None, n_threads=None)
    text = str(caught.value)
    assert "model.fp16.engine: Building and running TensorRT engines needs tensorrt" in text
    assert "model.onnx: Running ONNX files needs onnxruntime" in text
    assert "pip install 'kdedge[runtime]'" in text


def write_engine(
    artifact: Artifact, name: str, *, text: str = "engine 1 4 FLOAT logits 16", **changes: Any
) -> ModelFile:
    """Writes an engine that the TensorRT of host memory runs; gives its entry."""
    path = artifact.path / name
    path.write_text(text)
    values = {"gate": "passed", "precision": "fp16", "device": "gpu", **changes}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFile(name, "tensorrt", sha256=digest, n_bytes=len(text), **values)


@pytest.mark.parametrize(
    ("gate", "wishes"), [("passed", {}), ("not measured", {"backend": "tensorrt"})]
)
@pytest.mark.usefixtures("cudart")
def test_an_engine_is_used_before_any_other_file_and_nothing_is_said(
    artifact: Artifact,
    write_model: Any,
    caplog: pytest.LogCaptureFixture,
    gate: str,
    wishes: dict[str, Any],
) -> None:
    artifact = measured(artifact, write_model)
    engine = write_engine(artifact, "model.fp16.engine", gate=gate)
    file, _ = load(artifact.with_files(engine), **wishes)
    assert file.name == "model.fp16.engine"
    assert caplog.messages == []


@pytest.mark.usefixtures("cudart")
def test_a_tampered_engine_is_an_error_even_where_the_onnx_file_would_run(
    artifact: Artifact,
) -> None:
    artifact = artifact.with_files(write_engine(artifact, "model.fp16.engine"))
    (artifact.path / "model.fp16.engine").write_text("engine 1 5 FLOAT logits 16")
    with pytest.raises(DataError, match=r"model\.fp16\.engine has changed since the export"):
        load(artifact)


@pytest.mark.parametrize("wishes", [{}, {"precision": "fp16"}, {"precision": "int8"}])
@pytest.mark.usefixtures("cudart")
def test_an_engine_that_was_never_measured_is_used_with_one_warning(
    artifact: Artifact, caplog: pytest.LogCaptureFixture, wishes: dict[str, Any]
) -> None:
    precision = wishes.get("precision", "fp16")
    name = f"model.{precision}.engine"
    engine = write_engine(artifact, name, gate="not measured", precision=precision)
    load(artifact.with_files(engine), **wishes)
    flags = "--trt --int8" if precision == "int8" else "--trt"
    assert caplog.messages == [
        f"{name} was never compared with the model. Compare it on this machine with: kdedge export"
        f" {artifact.path} {flags}"
    ]


@pytest.mark.usefixtures("cudart")
def test_this_gpus_own_engine_comes_before_one_of_a_larger_gpu(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    larger, own = (
        write_engine(artifact, f"model.fp16.orin-{n}.engine", built_with={"multiprocessors": n})
        for n in (16, 8)
    )
    file, _ = load(artifact.with_files(larger, own))
    assert (file.name, caplog.messages) == ("model.fp16.orin-8.engine", [])
    file, _ = load(artifact.with_files(larger))
    assert file.name == "model.fp16.orin-16.engine"
    assert caplog.messages == [
        "model.fp16.orin-16.engine was built for a GPU with 16 multiprocessors, but this one has"
        f" 8. Build an engine for this GPU with: kdedge export {artifact.path} --trt"
    ]


def test_an_engine_that_does_not_fit_leaves_its_memory_to_the_next_file(
    artifact: Artifact,
    cudart: Any,
    host_gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.collect()
    monkeypatch.setattr(host_gpu.HostTensorRT, "room_for", len(host_gpu.HostEngine.alive) + 1)
    cudart.memory_bytes = 4 * (3 * 16 * 16 + 4) * 4
    large = write_engine(artifact, "model.fp16.engine", text="engine 1 99 FLOAT logits 16")
    small = write_engine(artifact, "model.fp32.engine", precision="fp32")
    file, _ = load(artifact.with_files(large, small))
    assert file.name == "model.fp32.engine"
    assert caplog.messages == []


def test_an_engine_is_closed_if_the_file_of_none_of_these_has_changed(
    artifact: Artifact, cudart: Any
) -> None:
    none_below = NoneBelow(0.0, (0.0,) * 101)
    engine = write_engine(artifact, "model.fp16.engine", none_below=none_below)
    (artifact.path / GAUSSIANS_FILE).write_bytes(b"changed")
    none = NoneOfThese("mahalanobis", GAUSSIANS_FILE, 95.0, "images", 100)
    others = {**artifact.others, GAUSSIANS_FILE: SHA}
    changed = dataclasses.replace(artifact, none_of_these=none, others=others)
    changed.with_files(engine).save()
    with pytest.raises(DataError, match=GAUSSIANS_FILE):
        Classifier.load(artifact.path)
    assert (cudart.allocated, cudart.streams) == ({}, set())


def test_a_gpu_that_cuda_cannot_use_is_told(
    artifact: Artifact, cudart: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cudart.fails["cudaGetDevice"] = 35
    engines = [write_engine(artifact, f"model.{name}.engine", precision=name) for name in PAIR]
    file, _ = load(artifact.with_files(*engines))
    assert file.name == "model.onnx"
    (message,) = caplog.messages
    assert message.startswith("Using model.onnx instead of model.fp16.engine: ")
    assert "cudaGetDevice failed with error 35" in message


def measured(artifact: Artifact, write_model: Any, **changes: Any) -> Artifact:
    """The artifact with an INT8 file that was the fastest on this machine."""
    path = write_model(artifact.path / "model.int8-cpu.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = ModelFile(path.name, "onnx", "int8", "cpu", sha256=digest, n_bytes=9, gate="passed")
    values: dict[str, Any] = {
        "machine": CpuMachine.this(),
        "file": entry.name,
        "sha256": digest,
        "batch": 1,
        "candidates": (),
        "not_tried": {},
        "measured_at": "2026-01-02T03:04:05+00:00",
    }
    return keep_choice(artifact.with_files(entry), CpuChoice(**{**values, **changes}))


@pytest.mark.parametrize(
    ("wishes", "name"),
    [
        ({}, "model.int8-cpu.onnx"),
        ({"precision": "fp32"}, "model.onnx"),
        ({"backend": "onnxruntime"}, "model.onnx"),
    ],
)
def test_the_file_that_was_the_fastest_here_is_used_where_no_other_is_asked_for(
    artifact: Artifact,
    write_model: Any,
    caplog: pytest.LogCaptureFixture,
    wishes: dict[str, Any],
    name: str,
) -> None:
    file, _ = load(measured(artifact, write_model), **wishes)
    assert file.name == name
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"machine": CpuMachine("Other CPU", ("amx_int8",), 2)},
            r"measured on another machine \(Other CPU \(amx_int8\), 2 cores\), not on ",
        ),
        ({"sha256": SHA}, r"model\.int8-cpu\.onnx was built again after it was measured"),
    ],
)
def test_a_choice_that_does_not_hold_here_is_told_and_not_used(
    artifact: Artifact,
    write_model: Any,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str,
) -> None:
    artifact = measured(artifact, write_model, **changes)
    file, _ = load(artifact)
    assert file.name == "model.onnx"
    (message,) = caplog.messages
    assert re.search(reason, message)
    assert f"using model.onnx. Measure here with: kdedge export {artifact.path} --cpu" in message


def test_a_chosen_file_whose_runtime_is_gone_is_told(
    artifact: Artifact,
    write_model: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = measured(artifact, write_model)
    entry = dataclasses.replace(artifact.file("model.int8-cpu.onnx"), target="openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    used, _ = load(artifact.with_files(entry))
    assert used.name == "model.onnx"
    (message,) = caplog.messages
    assert message.startswith("model.int8-cpu.onnx was measured as the fastest, but cannot be used")
