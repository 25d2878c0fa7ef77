"""From an artifact to predictions: which of its files runs here, and images to class names."""
