"""Pseudo-labels of unlabeled images: written, read, trained on in rounds."""
