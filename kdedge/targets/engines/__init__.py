"""What the targets TensorRT and TensorRT for RTX share."""
