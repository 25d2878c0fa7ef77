"""ExecuTorch: programs for phones and other devices, computed by XNNPACK in float32 and INT8."""
