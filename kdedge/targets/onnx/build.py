"""The ONNX files that `deploy.export` writes."""

from __future__ import annotations

from kdedge.targets.base import PlannedFile

FLOAT32 = PlannedFile("model.onnx", "fp32", "any")
FP16 = PlannedFile("model.fp16.onnx", "fp16", "gpu")
INT8 = PlannedFile("model.int8.onnx", "int8", "gpu")
INT8_CPU = PlannedFile("model.int8-cpu.onnx", "int8", "cpu")
