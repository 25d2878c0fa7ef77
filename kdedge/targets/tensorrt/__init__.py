"""TensorRT: engines for the GPU of the machine that builds them."""

from __future__ import annotations

from kdedge.targets.base import Package, Target
from kdedge.targets.engines.package import jetson_wheel_problem

TENSORRT = Package(
    "tensorrt",
    "building and running TensorRT engines",
    extra="trt",
    install="pip install tensorrt (on a Jetson and other ARM: sudo apt-get install"
    " python3-libnvinfer, in a virtual environment with --system-site-packages)",
    names=("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
)

TARGET = Target(
    name="tensorrt",
    label="TensorRT",
    flag="--trt",
    help="TensorRT engines, for the GPU of this machine.",
    files="model.*.trt*.engine",
    source="ONNX file",
    precisions=("fp16", "fp32", "int8"),
    build_packages=(TENSORRT,),
    run_package=TENSORRT,
    backend="tensorrt",
    preference=20,
    is_engine=True,
    remark="Needs TensorRT 10 or 11 and an NVIDIA GPU, such as that of a Jetson.",
    find_problem=jetson_wheel_problem,
)
