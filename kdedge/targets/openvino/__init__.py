"""OpenVINO: files for CPUs, in float32, bf16, FP16 weights and INT8."""
