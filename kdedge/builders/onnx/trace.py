"""Traces a folded model to a float32 graph for ONNX Runtime, TensorRT and OpenVINO."""

from __future__ import annotations

import ast
import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdedge.builders.program import dynamic_shapes, example_images
from kdedge.errors import RecipeError
from kdedge.files import written_together
from kdedge.messages import first_line
from kdedge.native_lines import quiet
from kdedge.runtime.artifact import INPUT_NAME
from kdedge.targets.onnx.graph import MAX_WEIGHT_BYTES, drop_unused

# The lowest opset that the exporter writes. `LayerNormalization` is one node, whose statistics
# are float32 in every precision.
OPSET = 18

# The IR version that belongs to the opset; ONNX Runtime reads it since 1.16
IR_VERSION = 9


class Tracer:
    """Traces models that differ in their weights only; it runs just the first model."""

    def __init__(self) -> None:
        self._program: Any = None

    def __call__(self, model: nn.Module, *, size_px: int, batches: tuple[int, int]) -> Any:
        """A model's graph, as torch's exporter returns it; see `write_onnx` for the arguments."""
        if self._program is None:
            self._program = _trace(model, size_px=size_px, batches=batches)
        program = copy.copy(self._program)
        program.model = self._program.model.clone()  # without its weights
        initial = program.model.graph.initializers
        # Not state_dict, in which split attention joins its weights, as in open_clip's files
        weights = (*model.named_parameters(), *model.named_buffers())
        program.apply_weights({name: values for name, values in weights if name in initial})
        program.optimize()  # folds constants
        return program.model_proto


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    size_px: int,
    batches: tuple[int, int] = (1, 32),
    external_data: bool = False,
    metadata: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_WEIGHT_BYTES,
    tracer: Tracer | None = None,
) -> None:
    """Writes a folded model as float32 ONNX, atomically.

    Args:
        model: a folded model, from pixels [B, 3, S, S] to logits [B, C] or features [B, D].
        path: the file; with `external_data`, its weights go to `<path>.data`.
        size_px: side of the model's images.
        batches: smallest and largest batch of the graph; if they are equal, it takes no other.
        external_data: store the weights in a second file.
        metadata: values for the file's metadata properties; values that are not text become JSON.
        max_bytes: maximum size of the weights in one file.
        tracer: a tracer of models with the same structure, size and batches; None for a new one.

    Raises:
        RecipeError: the weights are larger than `max_bytes`, or the model has a step that ONNX
            cannot express.
        ResourceError: the file cannot be written.
    """
    import onnx

    trace = tracer or Tracer()
    proto = trace(model, size_px=size_px, batches=batches)
    _make_readable(proto)
    proto.ir_version = IR_VERSION
    drop_unused(proto)
    for key, value in (metadata or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        proto.metadata_props.add(key=key, value=text)
    n_bytes = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if not external_data and n_bytes > max_bytes:
        raise RecipeError(
            f"{path.name} would have {n_bytes / 1e9:.2f} GB of weights, but one ONNX file can have"
            " at most 2.1 GB.\n"
            "  Set export.external_data=true, which stores them in a second file."
        )
    with written_together(path) as part:
        if external_data:
            onnx.save(proto, part, save_as_external_data=True, location=f"{path.name}.data")
        else:
            onnx.save(proto, part)
        onnx.checker.check_model(part, full_check=True)


def _trace(model: nn.Module, *, size_px: int, batches: tuple[int, int]) -> Any:
    """Traces a model to torch's ONNX program, whose constants are not folded yet."""
    images = example_images(model, size_px=size_px, batches=batches)
    folded: Any = model
    # Some of timm's blocks cache a tensor in their first run, which must not be the exporter's
    with torch.no_grad():
        model(images)
    try:
        with quiet():
            return torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=[INPUT_NAME],
                output_names=[folded.output_name],
                dynamic_shapes=dynamic_shapes(batches),
                optimize=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise RecipeError(
            f"The model cannot be exported to ONNX: {first_line(cause)}.\n"
            "  Distill another image encoder: a ViT, or a network whose steps do not depend on the"
            " values of the pixels."
        ) from error


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
    proto.producer_name = "kdedge"
    proto.producer_version = ""
