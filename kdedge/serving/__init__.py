"""Serves an artifact by HTTP: requests are joined into batches, and artifacts can be replaced."""
