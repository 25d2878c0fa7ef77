"""Files of pseudo-labels for unlabeled images."""
