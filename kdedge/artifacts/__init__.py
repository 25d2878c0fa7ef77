"""Artifacts: their model files, comparisons, classes and cards; needs no run and no torch."""
