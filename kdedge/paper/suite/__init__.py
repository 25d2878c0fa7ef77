"""Suites: a grid of recipes, methods and seeds, run cell by cell into one table."""
