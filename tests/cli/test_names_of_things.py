"""Commands and the Python API find a run or an artifact by each of its names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdedge as package

Run = Callable[..., Any]
ARTIFACT = "runs/tiny/02/artifacts/01"


@pytest.mark.parametrize("name", ["tiny", "tiny/02", "runs/tiny", "runs/tiny/02", ARTIFACT])
def test_a_thing_is_found_by_each_of_its_names(exported: Path, kdedge: Run, name: str) -> None:
    image = "test/cat/0.jpg"
    for arguments in (
        ("predict", name, image),
        ("compare", name, name, image),
        ("verify", name, "--images", "smoke"),
        ("classes", name),
        ("show", name),
    ):
        done = kdedge(*arguments)
        assert done.code == 0, (arguments, done.err)
    package.load(name).close()
    package.serve(name, port=0).close()
    package.watch(name, "pool").close()
    assert package.open_artifact(name).path.resolve() == exported / ARTIFACT
    assert package.open_run(name).name == "tiny/02"


def test_a_name_means_the_newest_run_with_an_artifact(exported: Path, kdedge: Run) -> None:
    shutil.copytree("runs/tiny/02", "runs/tiny/03")
    shutil.rmtree("runs/tiny/03/artifacts")
    assert package.open_artifact("tiny").path.resolve() == exported / ARTIFACT
    done = kdedge("predict", "tiny/03", "test")
    assert done.code == 3
    assert "tiny/03 is not an artifact, nor a run with one" in done.err


def test_python_takes_lists_of_images(exported: Path) -> None:
    images = sorted(Path("test/cat").iterdir())
    keys = [one.key for one in package.predict("tiny/02", images, "test/dog/0.jpg")]
    assert keys == [*map(str, images), "test/dog/0.jpg"]
    compared = package.compare("tiny/02", "tiny/02", map(str, images))
    assert compared.found.n_images == len(images)
