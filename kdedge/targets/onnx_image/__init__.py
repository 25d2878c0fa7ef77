"""ONNX files that take a decoded image of any size, and resize, crop and scale it themselves."""

from __future__ import annotations

from kdedge.targets.base import Target
from kdedge.targets.onnx import ONNX, ONNX_RUNTIME

TARGET = Target(
    name="onnx-image",
    label="ONNX with preprocessing",
    flag="--with-preprocess",
    help="ONNX files that take a decoded image of any size, and resize and crop it themselves.",
    files="model.image*.onnx",
    source="ONNX file",
    precisions=("fp32", "int8"),
    build_packages=(ONNX, ONNX_RUNTIME),
    run_package=ONNX_RUNTIME,
    backend="onnxruntime-image",
    preference=5,
    base_precision="fp32",
    uses_cpu_int8=True,
    remark="For ONNX Runtime and OpenVINO on CPUs; TensorRT does not take images of any size.",
)
