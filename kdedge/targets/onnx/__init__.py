"""ONNX files, the base of every artifact, and ONNX Runtime to run them on the CPU."""

from __future__ import annotations

from kdedge.targets.base import Package, Target

ONNX_RUNTIME = Package(
    "onnxruntime",
    "running ONNX files",
    extra="runtime",
    entry="onnxruntime:InferenceSession",
    names=("onnxruntime", "onnxruntime-gpu"),
)
ONNX, ONNX_IR, ONNXSCRIPT = (
    Package(name, "writing ONNX files", extra="export")
    for name in ("onnx", "onnx_ir", "onnxscript")
)

TARGET = Target(
    name="onnx",
    label="ONNX",
    flag="--onnx",
    help="ONNX files, which every export of a run writes.",
    files="model*.onnx",
    source="folded model",
    precisions=("fp32", "fp16", "int8"),
    cpu_precisions=("fp32", "int8"),
    build_packages=(ONNX, ONNX_IR, ONNXSCRIPT, ONNX_RUNTIME),
    run_package=ONNX_RUNTIME,
    backend="onnxruntime",
    preference=10,
    remark="Other targets that are built on the device are built from these files.",
)
