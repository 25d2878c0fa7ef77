"""Fronts: the exported students of a suite by accuracy and cost, and the one to deploy."""
