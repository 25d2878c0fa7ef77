"""The fixtures of `tests/methods/every_method.py`."""

from __future__ import annotations

from every_method import (
    build,
    cases,
    fold_and_unfolded,
    labeled_batch,
    learn,
    student,
    the_shared_backbones_stay_as_they_are,
)

__all__ = [
    "build",
    "cases",
    "fold_and_unfolded",
    "labeled_batch",
    "learn",
    "student",
    "the_shared_backbones_stay_as_they_are",
]
