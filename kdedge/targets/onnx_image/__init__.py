"""ONNX files that take a decoded image of any size, and resize, crop and scale it themselves."""
