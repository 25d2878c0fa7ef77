"""The Python API: what a command does, as a call. `kdedge` lists its names."""
