"""The training loop and the runs it writes."""
