"""Torch-TensorRT: compiled programs for services with PyTorch."""

from __future__ import annotations

from kdedge.targets.base import Package, Target

TORCH_TENSORRT = Package(
    "torch_tensorrt", "building Torch-TensorRT programs", extra="torch-tensorrt"
)

TARGET = Target(
    name="torch-tensorrt",
    label="Torch-TensorRT",
    flag="--torch-trt",
    help="A Torch-TensorRT program, for PyTorch services.",
    files="model.*.torchtrt*.pt2",
    source="folded model",
    precisions=("fp16", "fp32"),
    build_packages=(TORCH_TENSORRT,),
    remark="Build INT8 engines from the ONNX file: `--trt --int8`.",
)
