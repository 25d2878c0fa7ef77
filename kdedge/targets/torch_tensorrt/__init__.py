"""Torch-TensorRT: programs for services that have PyTorch."""
