"""TensorRT: engines for the GPU of the machine that builds them."""
