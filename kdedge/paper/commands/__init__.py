"""The commands that join from papers."""
