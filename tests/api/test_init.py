"""`kdedge.init`: what a script or a notebook gives it and prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kdedge
from kdedge.errors import RecipeError

CLASSES = ["scratch", "true", "red fox: side"]  # YAML reads a bare `true` as no text


@pytest.fixture
def cams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paint: Callable[..., Path]) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        paint(tmp_path / "cams" / f"{number}.png", (40 * number, 20, 20))
    return Path("cams")


@pytest.mark.parametrize("listed", [CLASSES, tuple(CLASSES), np.array(CLASSES)])
def test_a_list_of_class_names_is_written_into_the_recipe(listed: object, cams: Path) -> None:
    made = kdedge.init("line3", images=cams, classes=listed)
    assert made.class_names == tuple(CLASSES)
    recipe = kdedge.load_recipe("line3.yaml").recipe
    assert recipe.classes.names == tuple(CLASSES)
    assert 'names: [scratch, "true", "red fox: side"]' in made.path.read_text()


@pytest.mark.parametrize(("given", "got"), [(3, "Got 3"), (["cat", 7], "Got 7"), (None, "None")])
def test_other_classes_are_refused_with_what_init_takes(
    given: object, got: str, cams: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"or a list of class names such as \[.*\]\.\n.*{got}"):
        kdedge.init("line3", images=cams, classes=given)
    assert not Path("line3.yaml").exists()


def test_a_new_recipe_prints_the_lines_of_the_command(
    cams: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdedge.cli.main import run

    Path("classes.txt").write_text("cat\ndog\n")
    printed = str(kdedge.init("line3", images=cams, classes="classes.txt"))
    Path("line3.yaml").unlink()
    assert run(["init", "line3", "--images", "cams", "--classes", "classes.txt"]) == 0
    command = capsys.readouterr().out
    assert command == f"{printed}\nNext: kdedge check line3.yaml\n"
    assert printed.startswith("classes  2 in classes.txt\nimages   4, of ")
