"""Comparing a set on the disk with what is published, on a miniature of SUN397."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from kdedge.paper.benchmark_sets import benchmark_set
from kdedge.paper.benchmark_sets.verify import verify

SUN397 = benchmark_set("sun397")

SPLIT = {
    "train": [["a/1.jpg", 0, "abbey"], ["c/1.jpg", 1, "church"]],
    "val": [["a/2.jpg", 0, "abbey"], ["c/2.jpg", 1, "church"]],
    "test": [["a/3.jpg", 0, "abbey"], ["c/3.jpg", 1, "church"], ["c/4.jpg", 1, "church"]],
}
SMALL = replace(SUN397, n_classes=2, n_images={"train": 2, "val": 2, "test": 3})
"""SUN397, as if two classes were all that is published."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of sets with the two classes of `SMALL`."""
    folder = tmp_path / SUN397.folder
    for rows in SPLIT.values():
        for name, _, _ in rows:
            path = folder / SUN397.image_root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    (folder / SUN397.lists[0]).write_text(json.dumps(SPLIT))
    return tmp_path


@pytest.fixture
def image(root: Path) -> Callable[[str], Path]:
    """Gives an image's file."""
    return lambda name: root / SUN397.folder / SUN397.image_root / name


@pytest.mark.parametrize("read_images", [True, False])
def test_a_set_as_published_has_no_problems(read_images, root):
    found = verify(SMALL, root, read_images=read_images)
    assert found.problems == ()
    assert [(p.part, p.n_images, p.n_classes) for p in found.parts] == [
        ("train", 2, 2), ("val", 2, 2), ("test", 3, 2),
    ]  # fmt: skip
    assert {part.unreadable for part in found.parts} == {() if read_images else None}


def test_missing_images_are_counted_in_their_part(root, image):
    image("c/2.jpg").unlink()
    found = verify(SMALL, root, read_images=True)
    assert found.problems == ("val lacks 1 of its 2 image files, for example c/2.jpg.",)


def test_images_that_cannot_be_read_are_listed_where_they_are_read(root, image):
    image("c/3.jpg").write_bytes(b"x")
    assert verify(SMALL, root, read_images=False).problems == ()
    found = verify(SMALL, root, read_images=True)
    assert found.problems == ("test has 1 images that cannot be read.",)
    assert [bad.key for part in found.parts for bad in part.unreadable] == ["c/3.jpg"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [["a/2.jpg", 0, "abbey"], ["a/5.jpg", 0, "abbey"]],
            [
                "val lacks 1 of its 2 image files, for example a/5.jpg.",
                "val has images of only 1 of 2 classes.",
            ],
        ),
        (SPLIT["val"][:1], ["the published split"]),
        (  # a name that no file can have
            [["a/2.jpg", 0, "abbey"], [f"c/{'n' * 300}.jpg", 1, "church"]],
            [f"val lacks 1 of its 2 image files, for example c/{'n' * 98}."],
        ),
    ],
)
def test_a_split_file_that_does_not_fit_the_images_or_what_is_published_is_a_problem(
    root, rows, expected
):
    path = root / SUN397.folder / SUN397.lists[0]
    path.write_text(json.dumps({**SPLIT, "val": rows}))
    problems = verify(SMALL, root, read_images=True).problems
    assert len(problems) == len(expected)
    assert all(words in problem for words, problem in zip(expected, problems, strict=True))


def test_a_known_hash_is_compared(root):
    digest = hashlib.sha256((root / SUN397.folder / SUN397.lists[0]).read_bytes()).hexdigest()
    images, split = SUN397.downloads

    def problems(sha256: str) -> tuple[str, ...]:
        expecting = replace(SMALL, downloads=(images, replace(split, sha256=sha256)))
        return verify(expecting, root, read_images=False).problems

    assert problems(digest) == ()
    (problem,) = problems("0" * 64)
    assert problem.endswith(f"has the SHA-256 {digest}, the published file {'0' * 64}.")


def test_what_is_missing_is_named_once(tmp_path):
    found = verify(SMALL, tmp_path, read_images=False)
    folder = tmp_path / SUN397.folder
    assert found.problems == (
        f"{folder / SUN397.image_root} is missing.",
        f"{folder / SUN397.lists[0]} is missing.",
    )
    assert found.parts == ()
