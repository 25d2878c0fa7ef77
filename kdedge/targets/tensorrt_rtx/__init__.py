"""TensorRT for RTX: engines for GeForce and RTX GPUs, built without a GPU."""
