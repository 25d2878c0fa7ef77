"""Export targets: one folder per target, and what they share. Nothing here loads torch.

In each, `__init__.py` has data and imports nothing heavy, and `build.py` writes the target's files.
If that needs torch, `kdedge/builders/NAME.py` does it instead; ONNX's files, from which others are
built, are written by `deploy/export.py`. `run.py` runs the files on the device; targets that kdedge
does not run lack it. `base.py` defines build and run.
"""
