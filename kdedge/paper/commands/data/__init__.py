"""The commands of `kdedge data` that benchmark sets add."""
