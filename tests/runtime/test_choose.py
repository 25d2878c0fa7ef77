"""Which file is used: the best that this machine runs, and what needs asking for."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from kdedge.errors import DataError, GateError, MissingPackage, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.choose import candidates, choose_and_load

SHA = "0" * 64


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
        ({}, ["model.fp16.engine", "model.fp32.engine", "model.onnx", "model.fp16.onnx"]),
        ({"precision": "fp32"}, ["model.fp32.engine", "model.onnx"]),
        ({"precision": "int8"}, ["model.int8.engine", "model.int8-cpu.onnx", "model.int8.onnx"]),
        ({"backend": "onnxruntime"}, ["model.onnx", "model.fp16.onnx"]),
        ({"backend": "tensorrt", "precision": "fp16"}, ["model.fp16.engine"]),
    ],
)
def test_the_candidates_in_their_order(
    artifact: Artifact, wishes: dict[str, Any], names: list[str]
) -> None:
    found = candidates(
        with_entries(artifact, *ALL), **{"precision": None, "backend": None, **wishes}
    )
    assert [file.name for file in found] == names


def test_a_file_that_missed_its_gate_is_used_only_when_asked_for(artifact: Artifact) -> None:
    missed = entry("model.fp16.onnx", precision="fp16", gate="missed")
    artifact = with_entries(artifact, missed)
    with pytest.raises(GateError, match=r"missed its gate; use it .* with --precision fp16"):
        candidates(artifact, precision=None, backend=None)
    assert candidates(artifact, precision="fp16", backend=None) == [missed]


def test_int8_is_used_only_when_asked_for(artifact: Artifact) -> None:
    with pytest.raises(GateError, match=r"model\.int8\.onnx: it is int8; .*--precision int8"):
        candidates(with_entries(artifact, ALL[1]), precision=None, backend=None)


def test_a_wish_that_no_file_fulfills_lists_what_there_is(artifact: Artifact) -> None:
    with pytest.raises(RecipeError, match=r"has no int8 file that can be run") as caught:
        candidates(artifact, precision="int8", backend=None)
    assert "It has: model.onnx (fp32, onnx)." in str(caught.value)
    with pytest.raises(RecipeError, match="has no file that tensorrt can run"):
        candidates(artifact, precision=None, backend="tensorrt")


def test_unknown_wishes_are_told(artifact: Artifact) -> None:
    with pytest.raises(RecipeError, match='no precision "fp8"'):
        candidates(artifact, precision="fp8", backend=None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match='no backend "onnx"'):
        candidates(artifact, precision=None, backend="onnx")


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
    assert message.startswith("model.onnx missed its gate and is used because fp32 was asked for")


def test_the_backend_that_was_asked_for_says_what_it_lacks(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackage, match=r"kdedge\[trt\]"):
        load(artifact.with_files(ALL[6]), backend="tensorrt")


def test_where_nothing_runs_each_file_says_why(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SetupError) as caught:
        choose_and_load(artifact.with_files(ALL[6]), precision=None, backend=None, n_threads=None)
    text = str(caught.value)
    assert "model.fp16.engine: Running tensorrt engines needs tensorrt" in text
    assert "model.onnx: Running ONNX files needs onnxruntime" in text
    assert "pip install 'kdedge[runtime]'" in text


def test_a_tampered_engine_is_an_error_even_where_the_onnx_file_would_run(
    artifact: Artifact, tmp_path: Path
) -> None:
    (artifact.path / "model.fp16.onnx").write_bytes(b"tampered")
    first = dataclasses.replace(ALL[2], name="model.fp16.onnx")
    with pytest.raises(DataError, match=r"model\.fp16\.onnx is not the file"):
        load(artifact.with_files(first), precision="fp16")
