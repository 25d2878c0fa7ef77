"""Devices, which have no end, and pipes, which wait for a writer, where a user names a file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdedge.files import open_regular, read_regular

Run = Callable[..., Any]
WHAT = "a device, pipe or socket, not a file"


@pytest.fixture(params=["pipe", "/dev/zero", "link to a pipe"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path that can be opened, and from which a plain read does not return."""
    if request.param.startswith("/dev"):
        return Path(request.param)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if request.param == "pipe":
        return pipe
    link = tmp_path / "link"
    link.symlink_to(pipe)
    return link


def test_only_a_regular_file_is_opened(endless: Path) -> None:
    with pytest.raises(OSError, match=WHAT):
        open_regular(endless)


def test_a_link_to_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"12"


def test_a_folder_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_a_file_with_more_bytes_than_its_kind_has_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(OSError, match="at most"):
        read_regular(tmp_path / "sparse", max_bytes=1000)


def test_a_recipe(kdedge: Run, endless: Path) -> None:
    kdedge("check", str(endless)).fails(2, WHAT)


def test_a_recipe_of_fifty_megabytes(kdedge: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"x" * 50_000_000)
    kdedge("check", str(tmp_path / "r.yaml")).fails(2, "r.yaml cannot be read", "at most")


def test_a_class_list(kdedge: Run, project: Path, endless: Path) -> None:
    kdedge("check", "r.yaml", "--set", f"classes.file={endless}").fails(3, WHAT)


def test_a_class_list_of_more_bytes_than_names_have(kdedge: Run, project: Path) -> None:
    with Path("classes.txt").open("ab") as file:
        file.truncate(100_000_000)
    kdedge("check", "r.yaml").fails(3, "classes.txt cannot be read", "at most")


def test_a_model_config(kdedge: Run, project: Path, endless: Path) -> None:
    kdedge("check", "r.yaml", "--set", f"student.config={endless}").fails(3, WHAT)


def test_weights(kdedge: Run, project: Path, endless: Path) -> None:
    kdedge("check", "r.yaml", "--set", f"student.weights={endless}").fails(3, WHAT)


def test_weights_of_a_run(kdedge: Run, project: Path) -> None:
    assert kdedge("train", "r.yaml", "--method", "zeroshot").code == 0
    (run,) = Path("runs/tiny").glob("[0-9]*")
    (run / "class_vectors.safetensors").unlink()
    os.mkfifo(run / "class_vectors.safetensors")
    kdedge("eval", str(run)).fails(3, "class_vectors.safetensors cannot be read", WHAT)


@pytest.fixture
def photos(device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an artifact, and one photo beside a pipe that is named like one."""
    device.write_artifact(tmp_path / "art")
    device.write_image(tmp_path / "photos/a.jpg", (250, 10, 10))
    os.mkfifo(tmp_path / "photos/x.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_a_pipe_among_photos_is_an_unreadable_image(kdedge: Run, photos: Path) -> None:
    done = kdedge("predict", "art", "photos", "--format", "jsonl")
    good, pipe = map(json.loads, done.out.splitlines())
    assert good["class"] == "red"
    assert WHAT in pipe["error"]


def test_a_pipe_that_is_named_to_predict_is_refused(kdedge: Run, photos: Path) -> None:
    kdedge("predict", "art", "photos/x.jpg").fails(3, WHAT, "standard input")


def test_an_artifact_s_record_that_is_a_pipe(kdedge: Run, photos: Path) -> None:
    shutil.copytree("art", "other")
    Path("other/artifact.json").unlink()
    os.mkfifo("other/artifact.json")
    kdedge("predict", "other", "photos/a.jpg").fails(3, "other is not an artifact")
