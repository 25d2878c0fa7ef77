"""Numbered folders and files."""

from __future__ import annotations

from pathlib import Path

from kdedge._files import new_numbered_folder, write_new_numbered_json


def test_the_next_number_follows_the_highest_and_names_that_are_none_are_passed_over(
    tmp_path: Path,
) -> None:
    for name in ("07", "9", "10", "²", "backup", "11.json"):  # "²" is a digit, and no number
        (tmp_path / name).mkdir()
    assert new_numbered_folder(tmp_path) == tmp_path / "11"
    assert write_new_numbered_json(tmp_path, {}) == tmp_path / "12.json"
