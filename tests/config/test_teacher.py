"""The recipe's `teacher` that is a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdedge.config.load import check_paths, dump_recipe, load_recipe
from kdedge.errors import DataError, RecipeError

HEAD = """\
name: x
classes: [cat, dog]
data: {}
student: {backbone: kdedge-demo-student, weights: builtin}
"""


def load(folder: Path, text: str) -> Any:
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml", ())


def test_a_file_is_written_back_as_it_was_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, f"{HEAD}teacher: {{file: pool.csv}}\n").recipe
    again = load(tmp_path, dump_recipe(recipe)).recipe
    assert again == recipe
    assert again.teacher.file == tmp_path / "pool.csv"
    assert not again.teacher.is_trained


def test_a_file_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":5: teacher\.file cannot be read: there is no file"):
        check_paths(load(tmp_path, f"{HEAD}teacher: {{file: pool.csv}}\n"))


@pytest.mark.parametrize("key", ["run: a", "method: zeroshot", "weights: openai"])
def test_no_key_stands_beside_a_file(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=r"teacher has file and \w+; remove one of them"):
        load(tmp_path, f"{HEAD}teacher: {{file: a.csv, {key}}}\n")
