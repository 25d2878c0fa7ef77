"""Shared code of the targets TensorRT and TensorRT for RTX."""
