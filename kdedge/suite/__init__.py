"""Suites: a grid of recipes, methods and seeds, run cell by cell and put into one table."""
