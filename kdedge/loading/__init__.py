"""Turns images into batches: decoding, normalization, random crops, a training's loader."""
