"""Another program reads the ONNX files: onnx's checker and shape inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

PRECISIONS = ("fp32", "fp16", "int8", "int8-cpu", "open")


@pytest.fixture(scope="module")
def files(
    onnx_files: dict[str, Path],
    open_onnx: Path,
    tmp_path_factory: pytest.TempPathFactory,
    folded_images: Any,
) -> dict[str, Path]:
    """Those of every precision, that for CPUs, and one with open classes."""
    from kdedge.builders.onnx.quantize import to_int8_cpu

    for_cpus = tmp_path_factory.mktemp("read") / "model.int8-cpu.onnx"
    to_int8_cpu(onnx_files["fp32"], for_cpus, calibration=folded_images[:4])
    return {**onnx_files, "int8-cpu": for_cpus, "open": open_onnx}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_checker_and_strict_shape_inference_take_every_file(
    files: dict[str, Path], precision: str
) -> None:
    model = onnx.load(files[precision])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
    outputs = {name for node in model.graph.node for name in node.output}
    assert outputs <= known
    (value,) = inferred.graph.output
    last = value.type.tensor_type.shape.dim[-1].dim_value
    assert (value.name, last) == (("features", 40) if precision == "open" else ("logits", 5))
