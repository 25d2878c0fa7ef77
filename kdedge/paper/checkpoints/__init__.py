"""Imports checkpoints of the public PromptSRC and PromptKD code as runs."""
