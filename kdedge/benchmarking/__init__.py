"""Speed, size and work of models, measured on this machine."""
