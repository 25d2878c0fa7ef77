"""The ONNX files that `deploy.export` writes."""

from __future__ import annotations

from dataclasses import replace

from kdedge.targets.onnx import TARGET

FLOAT32 = replace(TARGET.plan("fp32"), device="any")
FP16 = replace(TARGET.plan("fp16"), device="gpu")
INT8 = replace(TARGET.plan("int8"), device="gpu")
INT8_CPU = replace(INT8, name="model.int8-cpu.onnx", device="cpu")
