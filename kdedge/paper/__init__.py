"""A wing: what reproduces papers: suites, benchmark sets, public checkpoints and pseudo-labels.

Its commands and functions join the core through the entry points of `pyproject.toml`, as those of
other packages do. The core does not import it, and works without it.
"""
