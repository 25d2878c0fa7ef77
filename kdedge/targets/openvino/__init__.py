"""OpenVINO: files for CPUs, in float32, with FP16 weights, and in INT8."""

from __future__ import annotations

from kdedge.targets.base import Package, Target

OPENVINO = Package(
    "openvino", "building and running OpenVINO files", extra="openvino", entry="openvino:Core"
)

TARGET = Target(
    name="openvino",
    label="OpenVINO",
    flag="--openvino",
    help="OpenVINO files, for CPUs.",
    files="model*.xml",
    data="model*.bin",
    source="ONNX file",
    precisions=("fp32", "fp16", "int8"),
    cpu_precisions=("fp32", "fp16", "int8"),
    build_packages=(OPENVINO,),
    run_package=OPENVINO,
    backend="openvino",
    preference=15,
    base_precision="fp32",
)
