"""ONNX files, the base of every artifact, and ONNX Runtime to run them on the CPU."""
