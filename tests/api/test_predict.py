"""`kdedge.predict`: the command's answers for files and folders, as a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.cli.main import run
from kdedge.inference.lines import Prediction, UnreadableImage
from kdedge.runtime.artifact import Artifact


@pytest.fixture
def artifact(make_artifact: Callable[..., Artifact], tmp_path: Path) -> Artifact:
    pytest.importorskip("onnxruntime")
    return make_artifact(tmp_path / "artifact")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images and one that is none."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.png")
    (path / "broken.jpg").write_bytes(b"no image")
    return path


def test_a_folder_gets_the_answers_of_a_loaded_model_in_its_order(
    artifact: Artifact, folder: Path
) -> None:
    found = kdedge.predict(artifact, folder, top=2)
    assert len(found) == 6
    assert [one.key for one in found] == sorted(map(str, folder.iterdir()))
    assert [one.key for one in found.failed] == [str(folder / "broken.jpg")]
    assert isinstance(found.failed[0], UnreadableImage)
    with kdedge.load(artifact) as model:
        expected = [model(folder / f"{number}.png", top=2) for number in range(5)]
    assert [[answer.class_name for answer in one.top] for one in found.classified] == [
        [answer.class_name for answer in answers] for answers in expected
    ]


def test_it_prints_as_a_table_and_shows_as_one(artifact: Artifact, folder: Path) -> None:
    found = kdedge.predict(artifact, folder, top=2)
    first = found[0]
    assert isinstance(first, Prediction)
    lines = str(found).splitlines()
    assert lines[0].split() == ["image", "class", "score", "class", "2", "score", "2"]
    assert lines[1].startswith(first.key)
    assert f"{first.top[1].score_percent:.2f} %" in lines[1]
    assert lines[6].split() == [str(folder / "broken.jpg"), "-"]
    assert lines[7].startswith(f"{folder / 'broken.jpg'}: not a readable image")
    page = found._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") == 7


def test_its_csv_is_that_of_the_command(
    artifact: Artifact, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kdedge.predict(artifact, folder, top=3)
    capsys.readouterr()
    command = ["predict", str(artifact.path), str(folder), "--top", "3", "--format", "csv"]
    assert run(command) == 0
    assert found.to_csv() == capsys.readouterr().out


def test_its_records_are_the_json_lines_of_the_command(
    artifact: Artifact, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kdedge.predict(artifact, folder, top=2)
    capsys.readouterr()
    assert run(["predict", str(artifact.path), str(folder), "--top", "2", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert found.to_records() == [json.loads(line) for line in lines]


@pytest.mark.parametrize("number", ["top", "every"])
def test_a_number_below_1_is_refused_as_the_command_refuses_it(
    artifact: Artifact, folder: Path, number: str
) -> None:
    with pytest.raises(kdedge.RecipeError, match=f"{number} is 0"):
        kdedge.predict(artifact, folder, **{number: 0})
    assert run(["predict", str(artifact.path), str(folder), f"--{number}", "0"]) == 2


def test_the_least_certain_come_lowest_score_first(artifact: Artifact, folder: Path) -> None:
    found = kdedge.predict(artifact, folder)
    scores = [one.top[0].score_percent or 0 for one in found.classified]
    least = [one.top[0].score_percent for one in found.least_certain(3)]
    assert least == sorted(scores)[:3]


def test_without_scores_nothing_is_least_certain(
    make_artifact: Callable[..., Artifact], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    ranks = make_artifact(tmp_path / "ranks", head="argmax")
    with pytest.raises(kdedge.RecipeError, match="gives no scores"):
        kdedge.predict(ranks, folder).least_certain(1)


def test_no_image_at_all_is_an_error_that_says_why_of_the_first(
    artifact: Artifact, folder: Path
) -> None:
    with pytest.raises(kdedge.DataError, match=r"None of 1 image could.*\n  The first is .*broken"):
        kdedge.predict(artifact, folder / "broken.jpg")


def test_no_threads_and_no_path_are_refused(artifact: Artifact, folder: Path) -> None:
    with pytest.raises(kdedge.RecipeError, match="1 or more"):
        kdedge.predict(artifact, folder, threads=0)
    with pytest.raises(kdedge.RecipeError, match="No path is given"):
        kdedge.predict(artifact)
