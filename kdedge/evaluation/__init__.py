"""Accuracy, calibration, agreement of two models, and GMACs."""
