"""OpenVINO: files for CPUs, in float32, bf16, FP16 weights and INT8."""

from __future__ import annotations

from kdedge.targets.protocol import Package, Target

OPENVINO = Package(
    "openvino", "building and running OpenVINO files", extra="openvino", entry="openvino:Core"
)

TARGET = Target(
    name="openvino",
    label="OpenVINO",
    flag="--openvino",
    help="OpenVINO files, for CPUs.",
    files="model.*.xml",
    source="ONNX file",
    precisions=("fp32", "bf16", "fp16", "int8"),
    cpu_precisions=("fp32", "bf16", "fp16", "int8"),
    packages=(OPENVINO,),
    runtime=OPENVINO,
    backend="openvino",
    preference=15,
    base_precision="fp32",
    remark="bf16 is made where the CPU multiplies bfloat16 itself.",
)
