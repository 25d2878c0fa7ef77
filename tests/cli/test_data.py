"""`kdedge data scan`: what is printed where, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdedge.api.data import scan_images

Run = Callable[..., Any]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes with three images and an empty file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, width in (("cat/1.png", 8), ("cat/2.png", 9), ("dog/1.png", 7)):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 12)).save(path)
    (tmp_path / "images/dog/2.png").write_bytes(b"")
    return tmp_path / "images"


@pytest.mark.usefixtures("images")
def test_a_scan_prints_classes_sizes_and_what_is_unreadable(kdedge: Run) -> None:
    done = kdedge("data", "scan", "images").succeeds()
    assert done.err == ""
    assert done.out.startswith(f"{scan_images('images').table}\n\nclass")
    assert "images  4, of 7x12 and 8x12 and 1 other sizes, shorter side 7 to 9\n" in done.out
    assert "1 of 4 cannot be read, such as dog/2.png\n" in done.out
    assert "cat         2\ndog         2\n" in done.out
    assert done.out.endswith("dog/2.png: the file is empty\n")


@pytest.mark.usefixtures("images")
def test_the_json_of_a_scan_is_one_object_on_stdout(kdedge: Run) -> None:
    assert json.loads(kdedge("data", "scan", "images", "--json").succeeds().out)["n_images"] == 4
