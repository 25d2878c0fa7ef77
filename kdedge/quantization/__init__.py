"""INT8 independent of runtimes: fake quantization of a torch model, and the values files store."""
