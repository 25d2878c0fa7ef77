"""TensorRT for RTX: engines for GeForce and RTX GPUs, built without a GPU."""

from __future__ import annotations

from kdedge.targets.base import Package, Target

TENSORRT_RTX = Package(
    "tensorrt_rtx",
    "building and running TensorRT-RTX engines",
    extra="trt-rtx",
    names=("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
)

TARGET = Target(
    name="tensorrt-rtx",
    label="TensorRT-RTX",
    flag="--trt-rtx",
    help="TensorRT-RTX engines; builds without a GPU.",
    files="model.*.rtx*.engine",
    source="ONNX file",
    precisions=("fp16", "fp32", "int8"),
    build_packages=(TENSORRT_RTX,),
    run_package=TENSORRT_RTX,
    backend="tensorrt-rtx",
    preference=20,
    is_engine=True,
    remark="Builds on Linux on x86-64, for RTX GPUs since Ampere.",
)
