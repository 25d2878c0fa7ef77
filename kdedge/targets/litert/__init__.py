"""LiteRT: TensorFlow Lite files for phones and boards, in float32 and INT8."""

from __future__ import annotations

from kdedge.targets.protocol import Package, Target

LITERT = Package(
    "ai_edge_litert",
    ("ai-edge-litert",),
    "LiteRT files",
    extra="litert",
    install="pip install ai-edge-litert",
)
CONVERTER = Package("litert_torch", ("litert-torch",), "building LiteRT files", extra="litert")
QUANTIZER = Package(
    "ai_edge_quantizer", ("ai-edge-quantizer",), "building LiteRT files in INT8", extra="litert"
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
    packages=(CONVERTER, QUANTIZER, LITERT),
    backend="litert",
    base_precision="fp32",
    remark="A file takes one batch size: `export.batch`, or one image.",
)
