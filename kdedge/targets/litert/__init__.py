"""LiteRT: TensorFlow Lite files for phones and boards, in float32 and INT8."""
