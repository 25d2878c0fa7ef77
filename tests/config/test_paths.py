"""The files and folders that a recipe names are looked for, and each missing one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdedge.config.load import check_paths, dump_recipe, load_recipe
from kdedge.errors import DataError

GOOD = """\
name: line3
classes: [cat, dog]
data:
  unlabeled: {folder: cams}
  test: {folder: test}
student:
  weights: openai
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def test_missing_files_and_folders_are_listed_with_the_lines_of_their_keys(tmp_path):
    text = GOOD.replace("[cat, dog]", "{file: names.txt}").replace("openai", "w/x.pt")
    loaded = load_recipe(write(tmp_path, text), {"data.labeled.webdataset": "/no/s.tar"})
    changed = load_recipe(loaded, {"student.settings.tune": "full"}).recipe
    assert (changed == loaded.recipe, load_recipe(loaded)) == (False, loaded)
    with pytest.raises(DataError) as caught:
        check_paths(loaded)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "r.yaml:2: classes.file cannot be read: there is no file names.txt.",
        "overrides: data.labeled.webdataset cannot be read: there is no file /no/s.tar.",
        "r.yaml:4: data.unlabeled.folder cannot be read: there is no folder cams.",
        "r.yaml:5: data.test.folder cannot be read: there is no folder test.",
        "r.yaml:7: student.weights cannot be read: there is no file w/x.pt.",
        f"  Relative paths start at the recipe's folder, {tmp_path}; in overrides at"
        " the current folder or the suite's.",
    ]


def test_a_missing_path_of_an_override_says_where_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    path = write(tmp_path / "site", GOOD.replace("test: {folder: test}", "test: {folder: .}"))
    loaded = load_recipe(path, {"data.unlabeled": {"folder": "cams"}})
    with pytest.raises(DataError) as caught:
        check_paths(loaded)
    assert str(caught.value).splitlines() == [
        "overrides: data.unlabeled: data.unlabeled.folder cannot be read: there is no folder"
        f" {tmp_path}/cams.",
        f"  Relative paths start at the recipe's folder, {tmp_path}/site; in overrides at"
        " the current folder or the suite's.",
    ]


def test_patterns_of_shards_are_left_to_the_reader_of_shards(tmp_path):
    text = GOOD.replace("folder: cams", "webdataset: '/no/s-{0..1}.tar'")
    (tmp_path / "test").mkdir()
    check_paths(load_recipe(write(tmp_path, text)))


def test_tables_are_looked_for_unless_a_pattern_names_them(tmp_path):
    (tmp_path / "test").mkdir()
    text = GOOD.replace("folder: cams", "parquet: cams.parquet")
    with pytest.raises(
        DataError, match=r"unlabeled\.parquet cannot be read: there is no file or folder .*cams\.p"
    ):
        check_paths(load_recipe(write(tmp_path, text)))
    check_paths(
        load_recipe(write(tmp_path, text.replace("cams.p", "'cams-*.p").replace("et}", "et'}")))
    )
    text = GOOD.replace("folder: cams", "huggingface: cams")
    with pytest.raises(DataError, match=r"huggingface cannot be read: there is no folder"):
        check_paths(load_recipe(write(tmp_path, text)))


def test_a_dataset_on_the_hub_has_parts_and_no_path(tmp_path):
    (tmp_path / "test").mkdir()
    spec = "{huggingface: 'hf://datasets/owner/animals', part: val}"
    loaded = load_recipe(write(tmp_path, GOOD.replace("{folder: cams}", spec)))
    check_paths(loaded)
    recipe = loaded.recipe
    assert recipe.data.unlabeled.has_parts
    assert recipe.data.unlabeled.huggingface == "hf://datasets/owner/animals"
    assert load_recipe(write(tmp_path, dump_recipe(recipe))).recipe.data == recipe.data
    folder = load_recipe(write(tmp_path, GOOD.replace("folder: cams", "huggingface: hf/animals")))
    assert folder.recipe.data.unlabeled.huggingface == tmp_path / "hf/animals"


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "cams").write_text("x")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"must be a folder, and .*cams is none"):
        check_paths(load_recipe(write(tmp_path, GOOD)))
