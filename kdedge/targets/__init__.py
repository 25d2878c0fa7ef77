"""Export targets: one folder per target, with the same files in each.

`__init__.py` has data and imports nothing heavy, `build.py` writes the target's files, `run.py`
runs them on the device without torch. `protocol.py` defines what each file must have.
"""
