"""Images, labels, splits and the loader."""
