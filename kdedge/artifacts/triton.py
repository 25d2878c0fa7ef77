"""Writes a model repository for NVIDIA's Triton Inference Server.

Source of the fields: Triton's model configuration reference (`model_config.proto`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kdedge.errors import DataError
from kdedge.files import new_folder
from kdedge.runtime.artifact import INPUT_NAME, OUTPUT_NAME, Artifact, ModelFile, Precision
from kdedge.runtime.open_classes import check_gives_logits

log = logging.getLogger(__name__)

# Target of a model file -> Triton's name of its platform
PLATFORMS = {"tensorrt": "tensorrt_plan", "onnx": "onnxruntime_onnx"}

# Time in µs that a request waits for others to share its batch; 500 to 2000 is a usual start
MAX_QUEUE_DELAY_US = 1000

_PRECISION_ORDER = ("fp16", "fp32", "int8")
_LABELS = "labels.txt"


def write_triton(
    artifact: Artifact, folder: Path, *, precision: Precision | None = None, built: Collection[str]
) -> Path:
    """Writes `<folder>/<name>/` for Triton, complete or not at all.

    A TensorRT engine is preferred to ONNX, and FP16 to other precisions. An engine runs only with
    the TensorRT version that built it, so Triton's container must have that version.

    Args:
        artifact: the artifact; each file's hash is checked before it is copied.
        folder: the model repository; it may contain other models.
        precision: precision of the file; None for the preferred file.
        built: names of the engines that were just built on this machine.

    Returns:
        The model's folder.

    Raises:
        RecipeError: the model's folder exists, or the artifact has open classes.
        DataError: the artifact has no file for Triton, or a file has changed since the export.
        ResourceError: the folder cannot be written.
    """
    check_gives_logits(artifact, "Triton")
    file = _choose_file(artifact, precision, built)
    if artifact.none_below(file) is not None:
        log.warning('Triton always gives a class: its graph cannot predict "none".')
    with new_folder(folder / artifact.model_name) as new:
        version = new.part / "1"
        version.mkdir()
        suffix = "plan" if file.target == "tensorrt" else "onnx"
        shutil.copyfile(artifact.checked(file.name), version / f"model.{suffix}")
        if file.data is not None:  # its hash is checked, too; the graph refers to it by name
            shutil.copyfile(artifact.path / file.data, version / file.data)
        labels = "".join(f"{label}\n" for label in artifact.class_names)
        (new.part / _LABELS).write_bytes(labels.encode())
        (new.part / "config.pbtxt").write_bytes(config_text(artifact, file).encode())
    return folder / artifact.model_name


def config_text(artifact: Artifact, file: ModelFile) -> str:
    """Text of config.pbtxt for one of the artifact's files."""
    smallest, largest = artifact.batches
    is_fixed = smallest == largest
    # For Triton, a graph with a fixed batch size does not batch: the size is part of its dims.
    batch = [largest] if is_fixed else []
    size = artifact.preprocess.size_px
    is_uint8 = artifact.pixels == "uint8"
    kind = "TYPE_UINT8" if is_uint8 else "TYPE_FP32"
    highest = 255 if is_uint8 else 1
    max_batch = 0 if is_fixed else largest
    dims = json.dumps([*batch, 3, size, size])
    meaning = "only their order counts"
    if artifact.head == "scores":
        meaning = "softmax gives the scores"
    # Triton numbers all values of an output without batching, so labels fit only one image.
    labels = f' label_filename: "{_LABELS}"' if batch in ([], [1]) else ""
    outputs = json.dumps([*batch, len(artifact.class_names)])
    lines = [
        f"# Made from {file.name}. Input: RGB from 0 to {highest},"
        f" {size} x {size} pixels after resize and crop; mean and std are in the model.",
        f'name: "{artifact.model_name}"',
        f'platform: "{PLATFORMS[file.target]}"',
        f"max_batch_size: {max_batch}",
        f'input [ {{ name: "{INPUT_NAME}" data_type: {kind} dims: {dims} }} ]',
        f"# Logits: {meaning}.",
        f'output [ {{ name: "{OUTPUT_NAME}" data_type: TYPE_FP32 dims: {outputs}{labels} }} ]',
    ]
    if not is_fixed:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}")
    lines += _instances(file)
    # Warm-up, so that the first request is not slow; without batching, a call is a batch of 1.
    value = f"{{ data_type: {kind} dims: {dims} zero_data: true }}"
    warm_up_batches = [1] if is_fixed else sorted({1, largest})
    for n in warm_up_batches:
        lines.append(
            f'model_warmup {{ name: "batch {n}" batch_size: {n}'
            f' inputs {{ key: "{INPUT_NAME}" value {value} }} }}'
        )
    return "\n".join(lines) + "\n"


def _instances(file: ModelFile) -> list[str]:
    """Lines of the configuration that say where the model runs."""
    if file.target == "tensorrt":
        names = ", ".join(f'"{n}"' for n, _ in enumerate(file.built_with.get("profiles", [])))
        profile = f" profile: [ {names} ]" if names else ""
        group = f"instance_group [ {{ kind: KIND_GPU count: 1{profile} }} ]"
        return [group, "optimization { cuda { graphs: true } }"]
    if file.device == "cpu":
        return ["instance_group [ { kind: KIND_CPU count: 1 } ]"]
    return [
        "instance_group [ { kind: KIND_AUTO count: 1 } ]",
        "# On a GPU, ONNX Runtime builds a TensorRT engine at the start with this:",
        "# optimization { execution_accelerators { gpu_execution_accelerator"
        ' [ { name: "tensorrt" } ] } }',
    ]


def _choose_file(
    artifact: Artifact, precision: Precision | None, built: Collection[str]
) -> ModelFile:
    """Chooses the file for a server with a GPU: engines first, then FP16.

    Args:
        artifact: the artifact.
        precision: its precision; None for any.
        built: names of the engines that were just built on this machine. If it is empty, an engine
            is used only if it is the only one, as several engines are for different GPUs.

    Raises:
        DataError: there is no such file, or several engines, of which only one fits the server.
    """
    files = [file for file in artifact.files if file.target in PLATFORMS]
    if precision is not None:
        files = [file for file in files if file.precision == precision]
    missed = [file.name for file in files if file.gate == "missed"]
    for name in missed:
        log.warning(f"{name} is not used for Triton, as it missed its gate.")
    passed = [file for file in files if file.gate != "missed"]
    if not passed:
        why = f" ({', '.join(missed)} missed the parity gate)" if missed else ""
        raise DataError(
            f"{artifact.path} has no file that Triton can run{why}.\n"
            "  Export the run again with another precision, such as FP16."
        )

    def rank(file: ModelFile) -> tuple[Any, ...]:
        return (
            file.target == "onnx",
            _PRECISION_ORDER.index(file.precision),
            file.device == "cpu",
        )

    best = min(passed, key=rank)
    same = [file for file in passed if rank(file) == rank(best)]
    chosen = [file for file in same if file.name in built] or same
    if len(chosen) > 1:  # engines; an ONNX file is the only one of its kind
        raise DataError(
            f"{artifact.path} has {len(same)} engines in {best.precision}, each for another GPU"
            f" or version: {', '.join(file.name for file in same)}.\n"
            "  On Triton's machine, build the engine in the same command, which then selects it."
        )
    log.info(f"Using {chosen[0].name} for Triton.")
    return chosen[0]
