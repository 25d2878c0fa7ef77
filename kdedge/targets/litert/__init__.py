"""LiteRT: TensorFlow Lite files for phones and boards, in float32 and INT8."""

from __future__ import annotations

from kdedge.targets.base import Package, Target

LITERT = Package(
    "ai_edge_litert",
    "running LiteRT files",
    extra="litert",
    install="pip install ai-edge-litert",
    entry="ai_edge_litert.interpreter:Interpreter",
)
CONVERTER = Package(
    "litert_torch", "building LiteRT files", extra="litert", entry="litert_torch:convert"
)
QUANTIZER = Package(
    "ai_edge_quantizer",
    "building LiteRT files in INT8",
    extra="litert",
    entry="ai_edge_quantizer.quantizer:Quantizer",
)

TARGET = Target(
    name="litert",
    label="LiteRT",
    flag="--litert",
    help="LiteRT (TensorFlow Lite) files, for Android and ARM boards.",
    files="model*.tflite",
    source="folded model",
    precisions=("fp32", "int8"),
    cpu_precisions=("fp32", "int8"),
    build_packages=(CONVERTER, QUANTIZER, LITERT),
    run_package=LITERT,
    backend="litert",
    base_precision="fp32",
    remark="A file takes one batch size: `export.batch`, or one image.",
)
