"""Torch-TensorRT: compiled programs for services with PyTorch."""
