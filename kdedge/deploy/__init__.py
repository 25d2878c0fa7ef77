"""Deployment: from a trained model to an artifact whose files are compared with the model."""
