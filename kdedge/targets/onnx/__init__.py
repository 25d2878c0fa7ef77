"""ONNX files, the base of every artifact, and ONNX Runtime to run them on the CPU."""

from __future__ import annotations

from kdedge.targets.protocol import Package, Target

ONNX_RUNTIME = Package(
    "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "running ONNX files", extra="runtime"
)
ONNX = Package("onnx", ("onnx",), "ONNX files", extra="export")
ONNX_IR = Package("onnx_ir", ("onnx-ir",), "ONNX files", extra="export")
ONNXSCRIPT = Package("onnxscript", ("onnxscript",), "ONNX files", extra="export")

TARGET = Target(
    name="onnx",
    label="ONNX",
    flag="--onnx",
    help="ONNX files, which every export of a run writes.",
    files="model.*.onnx",
    source="folded model",
    precisions=("fp32", "fp16", "int8"),
    cpu_precisions=("fp32", "int8"),
    packages=(ONNX, ONNX_IR, ONNXSCRIPT, ONNX_RUNTIME),
    backend="onnxruntime",
    preference=10,
    remark="Other targets that are built on the device are built from these files.",
)
