"""A wing: what reproduces papers: their methods, benchmark sets, suites and public checkpoints.

Its methods, commands and functions join the core through the entry points of `pyproject.toml`, as
those of other packages do. The core does not import it, and works without it.
"""
