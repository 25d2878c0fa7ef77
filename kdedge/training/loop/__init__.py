"""The epoch loop and what a step of it needs."""
