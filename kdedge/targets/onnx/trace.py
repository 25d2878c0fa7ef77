"""Traces a folded model to a float32 graph for ONNX Runtime and TensorRT 8.6 or later.

Opset 17 is the first with `LayerNormalization` as one node, which keeps its statistics in float32
in every precision, and the last that TensorRT 8.6 imports; newer versions read it, too.
"""

from __future__ import annotations

import ast
import json
import logging
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from kdedge.errors import RecipeError
from kdedge.files import explain_os_error
from kdedge.runtime.artifact import INPUT_NAME
from kdedge.targets.onnx.graph import MAX_WEIGHT_BYTES, drop_unused, initializers, set_initializer

Batch = Literal["dynamic"] | int


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    size_px: int,
    batch: Batch = "dynamic",
    max_batch: int = 32,
    external_data: bool = False,
    metadata: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_WEIGHT_BYTES,
) -> None:
    """Writes a folded model as float32 ONNX, atomically.

    Args:
        model: a folded model, from pixels [B, 3, S, S] to logits [B, C] or features [B, D].
        path: the file; with `external_data`, its weights go to `<path>.data`.
        size_px: side of the model's images.
        batch: `dynamic`, or the only batch size of the graph.
        max_batch: the largest batch of a dynamic graph.
        external_data: store the weights in a second file.
        metadata: values for the file's metadata properties; values that are not text become JSON.
        max_bytes: maximum size of the weights in one file.

    Raises:
        RecipeError: the weights are larger than `max_bytes`, or the model has a step that ONNX
            cannot express.
        ResourceError: the file cannot be written.
    """
    import onnx

    proto = _trace(model, size_px=size_px, batch=batch, max_batch=max_batch)
    _make_readable(proto)
    lower_opset(proto)
    drop_unused(proto)
    for key, value in (metadata or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        proto.metadata_props.add(key=key, value=text)
    n_bytes = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if not external_data and n_bytes > max_bytes:
        raise RecipeError(
            f"{path.name} would have {n_bytes / 1e9:.2f} GB of weights, but one ONNX file can have"
            " at most 2.1 GB.\n"
            "  Store the weights in a second file: --set export.external_data=true"
        )
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        part = folder / path.name
        if external_data:
            onnx.save(
                proto, part, save_as_external_data=True, location=f"{path.name}.data",
            )  # fmt: skip
        else:
            onnx.save(proto, part)
        onnx.checker.check_model(part, full_check=True)
        for file in sorted(folder.iterdir(), reverse=True):  # the graph last
            file.replace(path.parent / file.name)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _trace(model: nn.Module, *, size_px: int, batch: Batch, max_batch: int) -> Any:
    """Traces a model to torch's ONNX graph."""
    is_dynamic = batch == "dynamic" and max_batch > 1
    # A batch of 1 would become a constant
    n_images = 2 if is_dynamic else 1 if batch == "dynamic" else batch
    images = torch.zeros(n_images, 3, size_px, size_px)
    folded: Any = model
    if folded.pixels == "uint8":
        images = images.to(torch.uint8)
    dimension = torch.export.Dim("batch", min=1, max=max_batch) if is_dynamic else None
    with torch.no_grad():
        model(
            images
        )  # some of timm's blocks keep a tensor of their first run; the exporter may not
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Of torch's own use of its deprecated parts
            warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                opset_version=18,  # the lowest that the exporter writes
                verbose=False,
                input_names=[INPUT_NAME],
                output_names=[folded.output_name],
                dynamic_shapes={"images": {0: dimension}} if dimension else None,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise RecipeError(
            f"The model cannot be exported to ONNX: {_reason(error)}.\n"
            "  Distill another image encoder: a ViT, or a network whose steps do not depend on the"
            " values of the pixels."
        ) from error
    finally:
        exporter.setLevel(level)
    assert program is not None
    return program.model_proto


def _reason(error: BaseException) -> str:
    """The first line of what caused an error of the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".:")


def _make_readable(proto: Any) -> None:
    """Names each node by its module in the model, and drops the exporter's metadata."""
    counts: Counter[str] = Counter()
    for node in proto.graph.node:
        scopes = next(
            (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]"
        )
        # The first is the model itself, whose name is empty; the last is the operator's own
        inside = [part for part in ast.literal_eval(scopes)[:-1] if part and part[0] != "_"]
        name = "/".join([*inside[-1:], node.op_type])
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        del node.metadata_props[:]
        node.doc_string = ""
    graph = proto.graph
    del graph.value_info[:]  # shapes follow from the operators; most tools do not update these
    for values in (graph.input, graph.output, graph.initializer, [graph, proto]):
        for value in values:
            del value.metadata_props[:]
            value.doc_string = ""
    graph.name = "kdedge"
    proto.producer_name, proto.producer_version = "kdedge", ""


OPSET = 17
IR_VERSION = 9
"""IR version of ONNX Runtime 1.16, the oldest version of JetPack 6."""

# Opset 18 gave these an option or an input; without it, they are what they were before
_ADDED = {
    "Pad": ((), 3),
    "Resize": (("antialias", "axes", "keep_aspect_ratio_policy"), 4),
    "ScatterElements": ((), 3),
    "ScatterND": ((), 3),
    "Split": (("num_outputs",), 2),
}

_DEFAULTS = (b"", b"stretch")  # the second of Resize


def lower_opset(proto: Any) -> None:
    """Rewrites a graph in place.

    Raises:
        RecipeError: an operator has no equivalent in opset 17.
    """
    import onnx

    _write_sizes(proto)
    constants = initializers(proto)
    for node in proto.graph.node:
        if onnx.defs.get_schema(node.op_type, 18, node.domain).since_version <= OPSET:
            continue
        if node.op_type.startswith("Reduce") and _lower_reduction(node, constants):
            continue
        options, n_inputs = _ADDED.get(node.op_type, ((), -1))
        added = [entry for entry in node.attribute if entry.name in options]
        is_used = any(entry.i or entry.ints or entry.s not in _DEFAULTS for entry in added)
        if n_inputs < 0 or is_used or any(node.input[n_inputs:]):
            raise RecipeError(
                f"The model cannot be exported: its node {node.name} ({node.op_type}) has no"
                f" equivalent in ONNX opset {OPSET}.\n"
                "  Distill another image encoder, for example a ViT or a ResNet."
            )
        kept = [entry for entry in node.attribute if entry.name not in options]
        del node.attribute[:]
        node.attribute.extend(kept)
    (opset,) = proto.opset_import
    opset.version = OPSET
    proto.ir_version = IR_VERSION


def _lower_reduction(node: Any, constants: dict[str, Any]) -> bool:
    """Turns the axes of a reduction from an input into an attribute, if they are constant."""
    import onnx

    axes = constants.get(node.input[1]) if len(node.input) > 1 else None
    if axes is None:
        return False
    values = onnx.numpy_helper.to_array(axes).tolist()
    kept = [entry for entry in node.attribute if entry.name == "keepdims"]
    del node.attribute[:], node.input[1:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("axes", values)])
    return True


def _write_sizes(proto: Any) -> None:
    """Gives each Split into a number of equal parts the sizes of its parts, if they are fixed."""
    import onnx

    splits = [node for node in proto.graph.node if node.op_type == "Split" and not node.input[1:]]
    if not splits:
        return
    values = onnx.shape_inference.infer_shapes(proto).graph.value_info
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    for node in splits:
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
        known = [shapes[output] for output in node.output if output in shapes]
        lengths = [shape[axis].dim_value for shape in known]
        if len(lengths) < len(node.output) or not all(lengths):
            continue
        name = f"{node.name}/sizes"
        set_initializer(proto, name, np.asarray(lengths, dtype=np.int64))
        node.input.append(name)
        kept = [entry for entry in node.attribute if entry.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(kept)
