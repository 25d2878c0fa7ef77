"""Writes ONNX files from a folded torch model, in float32 and INT8."""
