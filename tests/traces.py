"""Lets torch trace a model for ONNX, which takes 2 s, once for each structure.

Models of one structure differ in their weights only, which `kdedge.builders.onnx.trace` puts into
the program of each; tests of that trace every model.

For every model torch lists the translations of all operators, which takes one second, and
onnxscript looks at all nodes to compare one of them with a rule. Here a process does the first
once, and the second where the operator is the rule's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any


def traced_once(folder: Path) -> Callable[..., Any]:
    """`torch.onnx.export` that takes equal programs from memory, or from a folder of all."""
    import onnx
    import onnx_ir
    import torch

    export, programs = torch.onnx.export, {}

    def export_always(*arguments: Any, **options: Any) -> Any:
        _save_time()
        return export(*arguments, **options)

    def export_once(model: Any, images: Any, **options: Any) -> Any:
        name = _structure(model, images, options)
        path = folder / f"{name}.onnx"
        if name not in programs and path.exists():
            programs[name] = torch.onnx.ONNXProgram(onnx_ir.from_proto(onnx.load(path)), None)
        elif name not in programs:
            programs[name] = program = export_always(model, images, **options)
            proto = program.model_proto
            with contextlib.suppress(onnx_ir.serde.SerdeError):  # of names that are there twice
                onnx_ir.from_proto(proto)
                part = path.with_suffix(f".{os.getpid()}")
                part.write_bytes(proto.SerializeToString())
                part.rename(path)
        return programs[name]

    export_once.traces_always = export_always  # type: ignore[attr-defined]
    return export_once


@functools.cache
def _save_time() -> None:
    with contextlib.suppress(ImportError, AttributeError):  # of another version
        from onnxscript.rewriter._rewrite_rule import Pattern
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        make, match = functools.cache(ONNXRegistry.from_torchlib), Pattern.match

        def match_quickly(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
            operator = rule._target_pattern.output_nodes[0].op_identifier()
            if operator is None or operator == node.op_identifier():
                return match(rule, model, graph, node, **options)
            return None

        ONNXRegistry.from_torchlib = staticmethod(make)  # type: ignore[method-assign,assignment]
        Pattern.match = match_quickly  # type: ignore[method-assign]


def _structure(model: Any, images: Any, options: dict[str, Any]) -> str:
    """A hash of all but the values of what a program gets anew: of parameters and buffers."""
    import torch

    weights = (*model.named_parameters(), *model.named_buffers())
    names = {id(weight): name for name, weight in weights}

    class Pickler(pickle.Pickler):
        def reducer_override(self, part: Any) -> Any:
            if not isinstance(part, torch.Tensor):
                return NotImplemented
            if id(part) in names or any(part is image for image in images):
                return str, (f"{names.get(id(part))} {part.shape} {part.dtype} {part.device}",)
            file = io.BytesIO()
            torch.save(part, file)
            return bytes, (file.getvalue(),)

    file = io.BytesIO()
    Pickler(file).dump((model, images, repr(options)))
    return hashlib.sha256(file.getvalue()).hexdigest()
