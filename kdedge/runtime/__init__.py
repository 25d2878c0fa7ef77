"""The code that runs on the device; it needs no torch."""
