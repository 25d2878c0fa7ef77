"""Writes a model repository for the Triton Inference Server: model, configuration, labels.

Source of the fields: Triton's model configuration reference (`model_config.proto`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from kdedge.deploy._serving import check_class_names, choose_file, copy_file
from kdedge.folders import new_folder
from kdedge.runtime.artifact import INPUT_NAME, OUTPUT_NAME, Artifact, ModelFile, Precision

PLATFORMS = {"tensorrt": "tensorrt_plan", "onnx": "onnxruntime_onnx"}
"""Target of a model file -> Triton's name of its platform."""

MAX_QUEUE_DELAY_US = 1000
"""Time in µs that a request waits for others to share its batch; 500 to 2000 is a usual start."""

_LABELS = "labels.txt"
_WANTED = [
    *(("tensorrt", precision) for precision in ("fp16", "int8", "fp32")),
    *(("onnx", precision) for precision in ("fp16", "fp32", "int8")),
]
_LINE_ENDS = {"\n": "a line break", "\r": "a line break"}
_NOT_SAFE = re.compile(r"[^A-Za-z0-9_-]+")


def write_triton(
    artifact: Artifact,
    folder: Path,
    *,
    precision: Precision | None = None,
    built: Collection[str] = (),
) -> Path:
    """Writes `<folder>/<name>/` for Triton, complete or not at all.

    A TensorRT engine is preferred to ONNX, and FP16 to other precisions. An engine runs only with
    the TensorRT version that built it, so Triton's container must have that version.

    Args:
        artifact: the artifact; each file's hash is checked before it is copied.
        folder: the model repository; it may have other models.
        precision: precision of the file; None for the preferred file.
        built: names of the engines that were just built on this machine.

    Returns:
        The model's folder.

    Raises:
        RecipeError: the model's folder exists, or the artifact has open classes.
        DataError: the artifact has no file for Triton, a file has changed since the export, or a
            class name has a line break.
        ResourceError: the folder cannot be written.
    """
    wanted = [pair for pair in _WANTED if precision in (None, pair[1])]
    file = choose_file(artifact, wanted, server="Triton", built=built)
    check_class_names(artifact, _LINE_ENDS, server="Triton")
    name = model_name(artifact.name)
    with new_folder(folder / name) as (part, _):
        version = part / "1"
        version.mkdir()
        suffix = "plan" if file.target == "tensorrt" else "onnx"
        copy_file(artifact, file, version, f"model.{suffix}")
        labels = "".join(f"{label}\n" for label in artifact.class_names)
        (part / _LABELS).write_bytes(labels.encode())
        (part / "config.pbtxt").write_bytes(config_text(artifact, file).encode())
    return folder / name


def model_name(name: str) -> str:
    """A form of the name that is valid as a folder, in a URL, and in quotes."""
    return _NOT_SAFE.sub("_", name).strip("_") or "model"


def config_text(artifact: Artifact, file: ModelFile) -> str:
    """Text of config.pbtxt for one of the artifact's files."""
    smallest, largest = artifact.batches
    is_fixed = smallest == largest
    # For Triton, a graph with a fixed batch cannot batch: the batch is part of its dims.
    batch = [largest] if is_fixed else []
    size = artifact.preprocess.size_px
    is_uint8 = artifact.pixels == "uint8"
    kind = "TYPE_UINT8" if is_uint8 else "TYPE_FP32"
    dims = json.dumps([*batch, 3, size, size])
    lines = [
        f"# Made from {file.name}. Input: RGB from 0 to {255 if is_uint8 else 1},"
        f" {size} x {size} pixels after resize and crop; mean and std are in the model.",
        f'name: "{model_name(artifact.name)}"',
        f'platform: "{PLATFORMS[file.target]}"',
        f"max_batch_size: {0 if is_fixed else largest}",
        f'input [ {{ name: "{INPUT_NAME}" data_type: {kind} dims: {dims} }} ]',
        *_output(artifact, batch),
    ]
    if not is_fixed:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}")
    lines += _instances(file)
    # Without batching, a call counts as a batch of 1, whatever its dims are.
    lines += _warmup(kind, dims, batches=[1] if is_fixed else sorted({1, largest}))
    return "\n".join(lines) + "\n"


def _output(artifact: Artifact, batch: list[int]) -> Iterator[str]:
    what = (
        "softmax gives the scores"
        if artifact.head == "scores"
        else "only their order has a meaning"
    )
    yield f"# Logits: {what}."
    # Triton numbers all values of an output without batching, so labels fit only one image.
    labels = f' label_filename: "{_LABELS}"' if batch in ([], [1]) else ""
    dims = json.dumps([*batch, len(artifact.class_names)])
    yield f'output [ {{ name: "{OUTPUT_NAME}" data_type: TYPE_FP32 dims: {dims}{labels} }} ]'


def _instances(file: ModelFile) -> Iterator[str]:
    if file.target == "tensorrt":
        profiles = range(len(file.built_with.get("profiles", [])))
        names = ", ".join(f'"{index}"' for index in profiles)
        profile = f" profile: [ {names} ]" if names else ""
        yield f"instance_group [ {{ kind: KIND_GPU count: 1{profile} }} ]"
        yield "optimization { cuda { graphs: true } }"
    elif file.device == "cpu":
        yield "instance_group [ { kind: KIND_CPU count: 1 } ]"
    else:
        yield "instance_group [ { kind: KIND_AUTO count: 1 } ]"
        yield "# On a GPU, ONNX Runtime builds a TensorRT engine at the start with this:"
        accelerator = 'gpu_execution_accelerator [ { name: "tensorrt" } ]'
        yield f"# optimization {{ execution_accelerators {{ {accelerator} }} }}"


def _warmup(kind: str, dims: str, *, batches: list[int]) -> Iterator[str]:
    """Warm-up requests, so that the first real request is not slow."""
    for batch in batches:
        yield "model_warmup {"
        yield f'  name: "batch {batch}"'
        yield f"  batch_size: {batch}"
        value = f"{{ data_type: {kind} dims: {dims} zero_data: true }}"
        yield f'  inputs {{ key: "{INPUT_NAME}" value {value} }}'
        yield "}"
