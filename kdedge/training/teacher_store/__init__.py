"""Teacher features per image and view, kept on disk."""
