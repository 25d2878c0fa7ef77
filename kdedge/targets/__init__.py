"""What a model is exported to and run by: one folder a target, with the same files in each.

`describe.py` holds data and imports nothing heavy, `build.py` writes the target's files, `run.py`
runs them on the device without torch. `protocol.py` says what each has to hold.
"""
