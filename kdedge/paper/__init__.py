"""A wing: what reproduces papers, such as suites, public checkpoints and files of pseudo-labels.

Its commands and functions join the core through the entry points of `pyproject.toml`, as those of
other packages do. The core does not import it, and works without it.
"""
