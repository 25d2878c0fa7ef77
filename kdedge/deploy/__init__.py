"""Deployment: from a trained run to an artifact whose files are compared with the model."""
