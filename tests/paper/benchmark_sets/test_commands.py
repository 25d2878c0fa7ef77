"""`kdedge data` with benchmark sets: what is printed where, and exit codes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdedge.cli.main import run
from kdedge.paper.benchmark_sets import Download, HubArchive, benchmark_set
from kdedge.paper.benchmark_sets.api import verify_set

SUN397 = benchmark_set("sun397")

SPLIT = {
    "train": [["1.png", 0, "abbey"], ["2.png", 1, "church"]],
    "val": [["3.png", 0, "abbey"], ["4.png", 1, "church"]],
    "test": [["5.png", 0, "abbey"], ["6.png", 1, "church"]],
}


@pytest.fixture
def published(hub: Any, file_server: Any, add_benchmark: Callable[..., None]) -> None:
    """A Hub that has the set `small`, SUN397 with two classes."""
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    name = SUN397.lists[0]
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"sun397/{name}", json.dumps(SPLIT))
        for number in range(1, 7):
            file.writestr(f"sun397/SUN397/{number}.png", picture.getvalue())
    hub.give("/owner/sets/resolve/abc/small.zip", file_server.Answer(archive.getvalue()))
    small = replace(
        SUN397,
        name="small",
        downloads=(
            Download("SUN397", "Unpack https://a.test/images"),
            Download(name, "https://a.test/split"),
        ),
        mirror=HubArchive("small.zip", repository="owner/sets", commit="abc"),
        n_classes=2,
        n_images={"train": 2, "val": 2, "test": 2},
    )
    add_benchmark(small)


@pytest.fixture
def kdedge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `kdedge data ...` in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDEDGE_DATA", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["data", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.usefixtures("published")
def test_a_set_is_fetched_and_is_then_as_published(kdedge, tmp_path):
    code, out, err = kdedge("fetch", "small")
    assert (code, out) == (
        0,
        f"Wrote data/sun397 (SUN397, {SUN397.lists[0]})\nNext: kdedge data verify small\n",
    )
    assert err.startswith("Fetching small.zip (")
    code, out, _ = kdedge("verify", "small", "--images")
    assert code == 0
    assert out.endswith("\n\nAll as published.\n")
    _, out, _ = kdedge("verify", "small")
    assert out.endswith("\n\nAll as published. --images decodes the images, too.\n")
    assert "\nAll as published. read_images=True decodes the images" in str(verify_set("small"))
    code, out, _ = kdedge("fetch", "small")
    assert (code, out.splitlines()[0]) == (0, "data/sun397 has all of small already.")


@pytest.mark.usefixtures("published")
def test_the_folder_is_that_of_the_option_then_of_the_environment(kdedge, monkeypatch, tmp_path):
    monkeypatch.setenv("KDEDGE_DATA", "from-environment")
    _, out, _ = kdedge("show", "small")
    assert f"folder   {Path('from-environment/sun397')}" in out
    _, out, _ = kdedge("fetch", "small", "--data", "given")
    assert out.endswith("Next: kdedge data verify small --data given\n")
    assert (tmp_path / "given/sun397/SUN397/1.png").exists()


@pytest.mark.usefixtures("published")
def test_json_is_one_object_on_stdout(kdedge):
    code, out, _ = kdedge("fetch", "small", "--json")
    assert code == 0
    assert json.loads(out) == {
        "folder": "data/sun397",
        "new": ["SUN397", SUN397.lists[0]],
        "kept": [],
    }
    _, out, _ = kdedge("list", "--json")
    (found,) = [one for one in json.loads(out)["sets"] if one["name"] == "small"]
    assert (found["here"], found["n_classes"]) == ("yes", 2)
    _, out, _ = kdedge("show", "small", "--json")
    assert [file["here"] for file in json.loads(out)["files"]] == [True, True]
    _, out, _ = kdedge("verify", "small", "--json")
    assert json.loads(out)["problems"] == []


def test_a_set_that_cannot_be_looked_at_is_listed_with_the_others(kdedge, tmp_path):
    # As a folder that may not be looked into, but whoever asks
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dtd").symlink_to("n" * 300)
    code, out, _ = kdedge("list")
    assert code == 0
    here = {line.split()[0]: line.split()[3] for line in out.splitlines()}
    assert (here["dtd"], here["sun397"]) == ("no", "no")


@pytest.mark.usefixtures("published")
def test_a_set_that_differs_ends_in_exit_code_3_after_the_table(kdedge, tmp_path):
    kdedge("fetch", "small")
    (tmp_path / "data/sun397/SUN397/3.png").write_bytes(b"x")
    (tmp_path / "data/sun397/SUN397/5.png").unlink()
    code, out, err = kdedge("verify", "small", "--images")
    assert code == 3
    assert "3.png: not a readable image" in out
    assert out.endswith(
        "val has 1 images that cannot be read.\n"
        "test lacks 1 of its 2 image files, for example 5.png.\n"
    )
    assert "data/sun397 differs from the published small: 2 differences." in err
    assert err.endswith("Move the files that differ away, and run: kdedge data fetch small\n")


@pytest.mark.usefixtures("published")
def test_what_is_missing_as_a_whole_is_fetched(kdedge, tmp_path):
    kdedge("fetch", "small")
    (tmp_path / "data/sun397" / SUN397.lists[0]).unlink()
    code, _, err = kdedge("verify", "small")
    assert code == 3
    assert err.endswith("Fetch what is missing: kdedge data fetch small\n")
