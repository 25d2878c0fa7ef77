"""Suite files: what is read, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdedge.config.load import override_texts
from kdedge.config.yaml_file import parse_yaml
from kdedge.errors import RecipeError
from kdedge.paper.suite.spec import check_names, load_suite, recipe_file

ROOT = Path(__file__).parents[3]
SUITES = sorted(ROOT.glob("benchmarks/suites/*.yaml"))
GOOD = """\
name: both
recipes: [line3.yaml, sun397]
methods:
  - coop
  - {method: vpt, set: {baseline.settings.n_ctx_vision: 2}}
  - {name: teacher, role: teacher}
seeds: [4, 5]
set: {optim.epochs: 1}
paper:
  source: the paper
  figures:
    sun397:
      coop: {base: 80.6, novel: 65.89}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text)
    return path


def problem(folder: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_suite(write(folder, text))
    return str(caught.value).replace(f"{folder}/", "")


def test_a_suite_gives_its_values_and_labels_rows_by_their_methods(tmp_path):
    suite = load_suite(write(tmp_path, GOOD)).suite
    assert [(row.name, row.method, row.role) for row in suite.methods] == [
        ("coop", "coop", None),
        ("vpt", "vpt", None),
        ("teacher", None, "teacher"),
    ]
    assert suite.methods[1].set == {"baseline.settings.n_ctx_vision": 2}
    assert (suite.seeds, suite.set) == ((4, 5), {"optim.epochs": 1})
    assert suite.paper.figures["sun397"]["coop"].base == 80.6


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seeds:", "seds:", "s.yaml:7: seds is not a known key.\n  Did you mean seeds?"),
        ("method: vpt", "metod: vpt", "s.yaml:5: methods.1.metod is not a known key.\n  Did you"),
        ("role: teacher", "role: techer", "s.yaml:6: methods.2.role must be student"),
        ("{name: teacher, ", "{", "s.yaml:6: methods.2.name is missing."),
        ("[4, 5]", "[4, x]", 's.yaml:7: seeds.1 must be a whole number, got "x".'),
        ("[4, 5]", "[4, -1]", "s.yaml:7: seeds.1 must be at least 0, got -1."),
        ("[4, 5]", "[]", "s.yaml:7: seeds must be at least 1 entries long, got an empty list."),
        ("[4, 5]", "[4, 4]", "s.yaml:7: seeds holds 4 more than once; each must differ."),
        ("- {method: vpt,", "- {method: coop,", "s.yaml:3: methods holds coop more than once"),
        ("[line3.yaml,", "[sun397,", "s.yaml:2: recipes holds sun397 more than once"),
        ("name: both", "name: a/b", "s.yaml:1: name becomes a folder"),
        ("optim.epochs: 1", "seed: 1", "s.yaml:8: set has seed; a suite sets it"),
        ("base: 80.6", "base: 180.6", "figures.sun397.coop.base must be at most 100, got 180.6."),
        ("base: 80.6", "hm: 80.6", "s.yaml:13: paper.figures.sun397.coop.hm is not a known key."),
        ("  source: the paper\n", "", "s.yaml:9: paper.source is missing."),
        ("- coop", "- &x coop", "s.yaml:4: a suite has no anchors"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, old, new, expected):
    assert old in GOOD
    assert expected in problem(tmp_path, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(("text", "got"), [("", "nothing"), ("- a\n", "list"), ("a\n", "str")])
def test_a_file_that_is_no_mapping_is_no_suite(tmp_path, text, got):
    assert f"s.yaml: a suite is a mapping (key: value), got {got}." in problem(tmp_path, text)


def test_recipes_are_files_beside_the_suite_or_shipped(tmp_path):
    (tmp_path / "line3.yaml").touch()
    loaded = load_suite(write(tmp_path, GOOD))
    assert recipe_file(loaded, "line3.yaml", key=("recipes", 0)) == tmp_path / "line3.yaml"
    assert recipe_file(loaded, "sun397", key=("recipes", 1)).parts[-2:] == (
        *("recipes", "sun397.yaml"),
    )


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        ("lien3.yaml", "Did you mean line3.yaml?"),
        ("sub/../lien3.yaml", "Did you mean sub/../line3.yaml?"),
        ("sun379", "Did you mean sun397?"),
        ("quite/else", "{folder}/quite has no recipe. Write one with: kdedge init"),
    ],
)
def test_a_misspelt_recipe_is_answered_with_the_nearest(tmp_path, entry, remedy):
    (tmp_path / "line3.yaml").touch()
    (tmp_path / "sub").mkdir()
    loaded = load_suite(write(tmp_path, GOOD.replace("line3.yaml", entry)))
    with pytest.raises(RecipeError) as caught:
        recipe_file(loaded, entry, key=("recipes", 0))
    remedy = remedy.format(folder=tmp_path)
    assert f"s.yaml:2: There is no recipe {entry}.\n  {remedy}" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    sun397:", "    sun379:", ":12: paper.figures: sun379 is not a recipe of this suite."),
        ("coop: {base", "coup: {base", ":13: paper.figures: coup is not a row of this suite."),
    ],
)
def test_a_published_figure_of_nothing_is_an_error(tmp_path, old, new, expected):
    check_names(load_suite(write(tmp_path, GOOD)), ["line3", "sun397"])
    with pytest.raises(RecipeError) as caught:
        check_names(load_suite(write(tmp_path, GOOD.replace(old, new))), ["line3", "sun397"])
    assert expected in str(caught.value)
    assert "Did you mean " in str(caught.value)


def test_overrides_are_written_as_a_command_line_reads_them():
    values = {"a.b": 1e-5, "c": {"d": [1, "x: y", None]}, "e": "yes", "f": True, "g": {}}
    for text, (key, value) in zip(override_texts(values), values.items(), strict=True):
        name, _, written = text.partition("=")
        assert (name, parse_yaml(written, name=key)[0]) == (key, value)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_of_the_project_loads_and_finds_its_recipes(path):
    loaded = load_suite(path)
    assert loaded.suite.name == path.stem
    named = [*loaded.suite.recipes, *(row.trained_on for row in loaded.suite.methods)]
    assert all(recipe_file(loaded, entry, key=()).is_file() for entry in named if entry)
