"""Watches a camera, a stream, a video or a folder with an artifact; loads no torch."""
