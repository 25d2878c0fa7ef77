"""A wing: serves an artifact by HTTP, and watches cameras, streams, videos and folders with one.

Its commands and functions join the core through the entry points of `pyproject.toml`, as those of
other packages do. The core does not import it, and works without it.
"""
