"""Rewrites a graph of opset 18, the lowest that torch's exporter writes, as opset 17."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdedge.errors import RecipeError
from kdedge.targets.onnx.graph import initializers, set_initializer

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
