"""A Triton model repository: strict protobuf text, verified copies, whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from kdedge.artifacts.triton import config_text, write_triton
from kdedge.errors import DataError, RecipeError, ResourceError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.none_of_these import NoneBelow
from kdedge.runtime.preprocess import Preprocess

ENGINE = "model.fp16.trt10.13.3-sm87.engine"

# What Triton's model_config.proto knows, of what is written here; lists in [ ] where repeated.
FIELDS: dict[str, Any] = {
    "name": str,
    "platform": str,
    "max_batch_size": int,
    "input": [{"name": str, "data_type": "Type", "dims": [int]}],
    "output": [{"name": str, "data_type": "Type", "dims": [int], "label_filename": str}],
    "dynamic_batching": {"max_queue_delay_microseconds": int},
    "instance_group": [{"kind": "Kind", "count": int, "profile": [str]}],
    "optimization": {"cuda": {"graphs": bool}},
    "model_warmup": [{"name": str, "batch_size": int, "inputs": [{"key": str, "value": {}}]}],
}
FIELDS["model_warmup"][0]["inputs"][0]["value"] = {
    "data_type": "Type", "dims": [int], "zero_data": bool,
}  # fmt: skip
ENUMS = {
    "Type": ("TYPE_INVALID", "TYPE_FP32", "TYPE_UINT8"),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU"),
}


def parse(text: str) -> dict[str, Any]:
    """Reads a config.pbtxt with protobuf's own reader, as a message of `FIELDS`."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, json_format, message_factory, text_format

    kinds = descriptor_pb2.FieldDescriptorProto
    plain = {str: kinds.TYPE_STRING, int: kinds.TYPE_INT32, bool: kinds.TYPE_BOOL}
    file = descriptor_pb2.FileDescriptorProto(name="config.proto")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)

    def describe(message: Any, fields: dict[str, Any]) -> None:
        for number, (name, kind) in enumerate(fields.items(), start=1):
            is_list = isinstance(kind, list)
            label = kinds.LABEL_REPEATED if is_list else kinds.LABEL_OPTIONAL
            field = message.field.add(name=name, number=number, label=label)
            kind = kind[0] if is_list else kind
            if isinstance(kind, dict):
                describe(message.nested_type.add(name=f"In_{name}"), kind)
                field.type, field.type_name = kinds.TYPE_MESSAGE, f"In_{name}"
            elif isinstance(kind, str):
                field.type, field.type_name = kinds.TYPE_ENUM, f".{kind}"
            else:
                field.type = plain[kind]

    describe(file.message_type.add(name="Config"), FIELDS)
    config = text_format.Parse(text, message_factory.GetMessages([file])["Config"]())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def make_file(folder: Path, name: str, **changes: Any) -> ModelFile:
    data = f"bytes of {name}".encode()
    (folder / name).write_bytes(data)
    values: dict[str, Any] = {
        "name": name,
        "target": "onnx",
        "precision": "fp32",
        "device": "any",
        "sha256": hashlib.sha256(data).hexdigest(),
        "n_bytes": len(data),
        "gate": "passed",
    }
    return ModelFile(**(values | changes))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "artifact"
    folder.mkdir()
    return Artifact(
        path=folder,
        name="line3",
        class_names=("scratch", 'a "deep" one', "rayé: é;2"),
        preprocess=Preprocess(size_px=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        pixels="float",
        head="scores",
        max_batch=32,
        batch="dynamic",
        files=(
            make_file(folder, "model.onnx"),
            make_file(folder, "model.fp16.onnx", precision="fp16", device="gpu"),
            make_file(folder, "model.int8-cpu.onnx", precision="int8", device="cpu"),
        ),
    )


def with_engine(artifact: Artifact, name: str = ENGINE, **changes: Any) -> Artifact:
    values = {"target": "tensorrt", "precision": "fp16", "device": "gpu"} | changes
    return artifact.with_files(make_file(artifact.path, name, **values))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_onnx_repository_is_complete(artifact: Artifact, tmp_path: Path) -> None:
    folder = write_triton(artifact, tmp_path / "models", built=())
    assert folder == tmp_path / "models" / "line3"
    assert folder.stat().st_mode & 0o777 == 0o755  # Triton runs as another user
    files = tree(folder)
    assert files.keys() == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert files["1/model.onnx"] == b"bytes of model.fp16.onnx"
    assert files["labels.txt"].decode() == 'scratch\na "deep" one\nrayé: é;2\n'
    assert parse(files["config.pbtxt"].decode()) == {
        "name": "line3",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 32,
        "input": [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}],
        "output": [
            {
                "name": "logits",
                "data_type": "TYPE_FP32",
                "dims": [3],
                "label_filename": "labels.txt",
            }
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": 1000},
        "instance_group": [{"kind": "KIND_AUTO", "count": 1}],
        "model_warmup": [warmup(1), warmup(32)],
    }


def warmup(batch: int, **changes: Any) -> dict[str, Any]:
    request = {"data_type": "TYPE_FP32", "dims": [3, 8, 8], "zero_data": True} | changes
    inputs = [{"key": "images", "value": request}]
    return {"name": f"batch {batch}", "batch_size": batch, "inputs": inputs}


def test_an_engine_goes_before_onnx_and_runs_on_the_gpu(artifact: Artifact, tmp_path: Path) -> None:
    folder = write_triton(with_engine(artifact), tmp_path, built=())
    assert tree(folder)["1/model.plan"] == f"bytes of {ENGINE}".encode()
    text = (folder / "config.pbtxt").read_text()
    values = parse(text)
    assert values["platform"] == "tensorrt_plan"
    assert values["instance_group"] == [{"kind": "KIND_GPU", "count": 1}]
    assert values["optimization"] == {"cuda": {"graphs": True}}
    assert ENGINE in text.splitlines()[0]


def test_all_profiles_of_an_engine_are_served(artifact: Artifact, tmp_path: Path) -> None:
    profiles = [{"min": 1, "opt": 32, "max": 32}, {"min": 1, "opt": 1, "max": 1}]
    folder = write_triton(
        with_engine(artifact, built_with={"profiles": profiles}), tmp_path, built=()
    )
    (group,) = parse((folder / "config.pbtxt").read_text())["instance_group"]
    assert group == {"kind": "KIND_GPU", "count": 1, "profile": ["0", "1"]}


def test_of_several_machines_engines_the_one_that_was_built_here_is_served(
    artifact: Artifact, tmp_path: Path
) -> None:
    other = "model.fp16.trt11.4.0-sm90.engine"
    both = with_engine(with_engine(artifact), other)
    with pytest.raises(DataError, match=rf"2 engines in fp16.*{ENGINE}, {other}"):
        write_triton(both, tmp_path, built=())
    assert list(tmp_path.iterdir()) == [artifact.path]
    folder = write_triton(both, tmp_path, built=["model.onnx", other])
    assert tree(folder)["1/model.plan"] == f"bytes of {other}".encode()


def test_a_file_that_missed_its_gate_is_passed_over_aloud(
    artifact: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = write_triton(with_engine(artifact, gate="missed"), tmp_path, built=())
    assert tree(folder)["1/model.onnx"] == b"bytes of model.fp16.onnx"
    assert caplog.messages == [
        f"{ENGINE} is not used for Triton, as it missed its gate.",
        "Using model.fp16.onnx for Triton.",
    ]


def test_that_none_is_never_predicted_is_told(
    artifact: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    write_triton(artifact, tmp_path / "a", built=())
    assert not caplog.messages
    limit = NoneBelow(limit=-1, percentiles=tuple(range(101)))
    files = tuple(dataclasses.replace(file, none_below=limit) for file in artifact.files)
    write_triton(dataclasses.replace(artifact, files=files), tmp_path / "b", built=())
    assert caplog.messages == ['Triton always gives a class: its graph cannot predict "none".']


def test_an_engine_of_tensorrt_rtx_is_never_taken(artifact: Artifact, tmp_path: Path) -> None:
    with_rtx = with_engine(artifact, "model.fp16.rtx1.7.1.engine", target="tensorrt-rtx")
    assert "1/model.onnx" in tree(write_triton(with_rtx, tmp_path, built=()))


def test_a_precision_that_is_asked_for_is_the_one_that_is_served(
    artifact: Artifact, tmp_path: Path
) -> None:
    both = with_engine(with_engine(artifact), "model.int8.trt.engine", precision="int8")
    folder = write_triton(both, tmp_path / "a", precision="int8", built=())
    assert tree(folder)["1/model.plan"] == b"bytes of model.int8.trt.engine"
    alone = dataclasses.replace(artifact, files=artifact.files[:1])
    with pytest.raises(DataError, match="no file that Triton can run"):
        write_triton(alone, tmp_path / "b", precision="int8", built=())
    assert tree(write_triton(alone, tmp_path, built=()))["1/model.onnx"] == b"bytes of model.onnx"


def test_an_artifact_without_a_file_for_triton_is_refused(
    artifact: Artifact, tmp_path: Path
) -> None:
    missed = dataclasses.replace(artifact.files[0], gate="missed")
    with pytest.raises(DataError, match=r"no file that Triton can run \(model.onnx missed"):
        write_triton(dataclasses.replace(artifact, files=(missed,)), tmp_path / "models", built=())


def test_a_file_for_cpus_runs_there(artifact: Artifact) -> None:
    values = parse(config_text(artifact, artifact.file("model.int8-cpu.onnx")))
    assert values["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]


def test_uint8_graphs_take_uint8(artifact: Artifact) -> None:
    values = parse(config_text(dataclasses.replace(artifact, pixels="uint8"), artifact.files[0]))
    assert values["input"][0]["data_type"] == "TYPE_UINT8"
    assert values["model_warmup"][0] == warmup(1, data_type="TYPE_UINT8")


@pytest.mark.parametrize(("batch", "has_labels"), [(1, True), (4, False)])
def test_a_fixed_batch_is_in_the_dims_and_turns_batching_off(
    artifact: Artifact, batch: int, has_labels: bool
) -> None:
    fixed = dataclasses.replace(artifact, batch=batch, max_batch=batch)
    values = parse(config_text(fixed, artifact.files[0]))
    assert values["max_batch_size"] == 0
    assert values["input"][0]["dims"] == [batch, 3, 8, 8]
    assert values["output"][0]["dims"] == [batch, 3]
    assert ("label_filename" in values["output"][0]) == has_labels
    assert "dynamic_batching" not in values
    assert values["model_warmup"] == [warmup(1, dims=[batch, 3, 8, 8])]


def test_external_data_comes_along_under_its_own_name(artifact: Artifact, tmp_path: Path) -> None:
    data = artifact.path / "model.big.onnx.data"
    data.write_bytes(b"weights")
    file = make_file(artifact.path, "model.big.onnx", data=data.name)
    others = {data.name: hashlib.sha256(b"weights").hexdigest()}
    big = dataclasses.replace(artifact, files=(file,), others=others)
    files = tree(write_triton(big, tmp_path / "a", built=()))
    assert files["1/model.onnx"] == b"bytes of model.big.onnx"
    assert files["1/model.big.onnx.data"] == b"weights"
    data.write_bytes(b"Weights")
    with pytest.raises(DataError, match="has changed since the export"):
        write_triton(big, tmp_path / "b", built=())
    assert not (tmp_path / "b").exists()


def test_a_changed_file_leaves_nothing_behind(artifact: Artifact, tmp_path: Path) -> None:
    (artifact.path / "model.fp16.onnx").write_bytes(b"other")
    with pytest.raises(DataError, match="has changed since the export"):
        write_triton(artifact, tmp_path / "models", built=())
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_nothing_is_overwritten(artifact: Artifact, tmp_path: Path, kind: str) -> None:
    taken = tmp_path / "line3"
    if kind == "folder":
        taken.mkdir()
    elif kind == "file":
        taken.write_text("mine")
    else:
        taken.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="line3 exists, and nothing is overwritten"):
        write_triton(artifact, tmp_path, built=())
    assert sorted(tmp_path.iterdir()) == before


def test_a_second_model_joins_the_repository(artifact: Artifact, tmp_path: Path) -> None:
    write_triton(artifact, tmp_path / "models", built=())
    write_triton(dataclasses.replace(artifact, name="line4"), tmp_path / "models", built=())
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["line3", "line4"]


def test_a_folder_that_cannot_be_made_is_named(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ResourceError, match="line3 could not be written"):
        write_triton(artifact, tmp_path / "models", built=())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("line3", "line3"),
        ("line-3_b", "line-3_b"),
        ("line.3", "line_3"),
        ('../../etc "x"', "etc_x"),
        ("ligne \u00e9\n{", "ligne"),
        ("\u2026", "model"),
    ],
)
def test_a_models_name_is_safe_in_paths_addresses_and_quotes(
    artifact: Artifact, name: str, expected: str
) -> None:
    assert dataclasses.replace(artifact, name=name).model_name == expected


def in_triton_s_own_form(text: str) -> Any:
    """The configuration as Triton's own message ModelConfig, from tritonclient."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    try:
        files = distribution("tritonclient").files or []
    except PackageNotFoundError:
        pytest.skip("tritonclient, which has Triton's model_config.proto, is not installed")
    (found,) = [file for file in files if file.match("tritonclient/grpc/model_config_pb2.py")]
    # By its path: importing tritonclient.grpc needs gRPC
    spec = importlib.util.spec_from_file_location("model_config_pb2", found.locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(text, module.ModelConfig())


@pytest.mark.parametrize("pixels", ["float", "uint8"])
@pytest.mark.parametrize("batch", ["dynamic", 4])
@pytest.mark.parametrize("name", ["model.onnx", "model.int8-cpu.onnx", ENGINE])
def test_triton_s_own_schema_reads_every_configuration(
    artifact: Artifact, name: str, batch: Any, pixels: Any
) -> None:
    profiles = [{"min": 1, "opt": 32, "max": 32}, {"min": 1, "opt": 1, "max": 1}]
    made = dataclasses.replace(artifact, batch=batch, pixels=pixels)
    made = with_engine(made, built_with={"profiles": profiles})
    config = in_triton_s_own_form(config_text(made, made.file(name)))
    assert config.platform == ("tensorrt_plan" if name == ENGINE else "onnxruntime_onnx")
