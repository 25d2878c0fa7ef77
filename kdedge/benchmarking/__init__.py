"""Measures speed, size and work of models on this machine."""
