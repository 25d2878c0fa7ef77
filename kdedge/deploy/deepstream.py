"""Writes a classifier for DeepStream's `nvinfer`: configuration, labels and model.

nvinfer's own parser reads the largest output as a probability, so the model gets a softmax at its
end. Source of the keys: the Gst-nvinfer page of the DeepStream developer guide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdedge.deploy._serving import check_class_names, choose_file
from kdedge.errors import DataError, MissingPackage, RecipeError
from kdedge.files import explain_os_error
from kdedge.folders import new_folder
from kdedge.runtime.artifact import OUTPUT_NAME, Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess

MODEL, LABELS, CONFIG = "model.onnx", "labels.txt", "config_infer.txt"
SCORES = "scores"
"""Name of the output: softmax(logits)."""

_NETWORK_MODES = {"fp32": 0, "fp16": 2}
_SEPARATORS = {";": "a semicolon", "\n": "a line break", "\r": "a line break"}


def write_deepstream(artifact: Artifact, folder: Path) -> Path:
    """Writes a folder for nvinfer, complete or not at all.

    nvinfer builds the engine itself, from ONNX, at its first start. The artifact's FP16 file is
    used if there is one, else the FP32 file, and never an INT8 file: nvinfer runs INT8 only with a
    calibration table, which a file with its own ranges does not have.

    Args:
        artifact: the artifact; each file's hash is checked before it is read.
        folder: the folder to create; must not exist.

    Returns:
        Path of the configuration.

    Raises:
        RecipeError: the folder exists, or nvinfer cannot run this kind of artifact.
        DataError: the artifact has no file for nvinfer, a file has changed since the export, or a
            class name has a semicolon or line break.
        MissingPackage: onnx is not installed.
        ResourceError: the folder cannot be written.
    """
    file = choose_file(artifact, [("onnx", "fp16"), ("onnx", "fp32")], server="DeepStream")
    _check(artifact)
    check_class_names(artifact, _SEPARATORS, server="DeepStream")
    with new_folder(folder) as (part, _):
        _write_model(artifact, file, part / MODEL)
        (part / LABELS).write_bytes((";".join(artifact.class_names) + "\n").encode())
        (part / CONFIG).write_bytes(config_text(artifact, file).encode())
    return folder / CONFIG


def _check(artifact: Artifact) -> None:
    where = artifact.path
    if artifact.pixels == "uint8":
        raise RecipeError(
            f"{where} takes uint8 pixels, but nvinfer feeds float pixels.\n"
            "  Export again with --pixels float, or export.pixels: float in the recipe."
        )
    if artifact.head == "argmax":
        raise RecipeError(
            f"{where} was exported with head argmax: its outputs only rank classes, but nvinfer"
            " needs probabilities.\n"
            "  Export again with --head scores, or export.head: scores in the recipe."
        )


def _write_model(artifact: Artifact, file: ModelFile, path: Path) -> None:
    """Copies an ONNX file and adds a softmax after its output."""
    try:
        import onnx
    except ImportError as error:
        raise MissingPackage("onnx", extra="export", purpose="Writing for DeepStream") from error
    source = artifact.checked(file.name)
    proto = onnx.load(source)  # the hash of its external data is checked, too
    add_softmax(proto, source)
    try:
        onnx.save(
            proto,
            path,
            save_as_external_data=file.data is not None,
            location=f"{path.name}.data",
        )
    except OSError as error:
        raise explain_os_error(error, path) from error


def add_softmax(proto: Any, source: Path) -> None:
    """Adds a softmax over classes after a graph's output, in place; the new output is `scores`.

    Args:
        proto: an `onnx.ModelProto` whose one output is `logits`, [B, C], float32.
        source: its file, for messages.

    Raises:
        DataError: it has other outputs.
    """
    import onnx

    outputs = [output.name for output in proto.graph.output]
    if outputs != [OUTPUT_NAME]:
        raise DataError(
            f"{source} has the outputs {', '.join(outputs) or 'none'}; expected {OUTPUT_NAME}.\n"
            "  Export again."
        )
    node = onnx.helper.make_node("Softmax", [OUTPUT_NAME], [SCORES], name=SCORES, axis=-1)
    proto.graph.node.append(node)
    proto.graph.output[0].name = SCORES


def config_text(artifact: Artifact, file: ModelFile) -> str:
    """Text of config_infer.txt for one of the artifact's files."""
    batch = artifact.batches[1]
    size = artifact.preprocess.size_px
    # The name by which nvinfer stores the engine that it builds
    engine = f"{MODEL}_b{batch}_gpu0_{file.precision}.engine"
    return "\n".join(
        [
            f"# Made from {file.name}, with a softmax after its output.",
            *(f"# {line}" for line in _resize_notes(artifact.preprocess)),
            "[property]",
            "gpu-id=0",
            "gie-unique-id=1",
            "# 1: whole frames. For a detector's crops: process-mode=2 and operate-on-gie-id=1.",
            "process-mode=1",
            "# 1: a classifier",
            "network-type=1",
            f"onnx-file={MODEL}",
            "# Built from the ONNX file if it is missing",
            f"model-engine-file={engine}",
            f"labelfile-path={LABELS}",
            f"batch-size={batch}",
            "# 0: fp32, 2: fp16",
            f"network-mode={_NETWORK_MODES[file.precision]}",
            f"infer-dims=3;{size};{size}",
            "# The model takes RGB pixels from 0 to 1 and holds mean and std",
            "model-color-format=0",
            f"net-scale-factor={1 / 255}",
            "offsets=0;0;0",
            "maintain-aspect-ratio=0",
            f"output-blob-names={SCORES}",
            "# Scores up to this value give no label",
            "classifier-threshold=0.0",
            "",
        ]
    )


def _resize_notes(preprocess: Preprocess) -> list[str]:
    """Comment lines on how nvinfer's resizing differs from the model's preprocessing."""
    lines = [
        "nvinfer resizes with a scaler of its own: scores differ a little from kdedge's, so",
        "measure accuracy here too.",
    ]
    if preprocess.resize_mode != "squash":
        lines += [
            "The model was trained on the central square of an image. nvinfer cannot crop it: it",
            "squeezes the frame (maintain-aspect-ratio=0) or pads it (1). Crop before nvinfer, as",
            "with src-crop of nvvideoconvert.",
        ]
    return lines
