"""Export targets: one folder per target, and what they share.

In each, `__init__.py` has data and imports nothing heavy, and `build.py` writes the target's files;
only ONNX's, from which others are built, are written by `deploy/export.py`. `run.py` runs them on
the device without torch; targets that kdedge does not run lack it. `base.py` defines both.
"""
