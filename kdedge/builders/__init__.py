"""Builds files from a folded torch model, for the targets that need torch to be built."""
