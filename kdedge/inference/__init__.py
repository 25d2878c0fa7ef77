"""Inference with an artifact: chooses the file that this machine can run, and classifies images."""
