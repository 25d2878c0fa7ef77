"""The Python API: a function for what each command does. `kdedge` lists the names."""
