"""benchmarks/real/lay_out.py on snapshots with a few made-up files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "real" / "lay_out.py"
CLASSES = {"banded": "banded", "cracked": "cracked"}
PARTS = {"train": (0, 1), "val": (2,), "test": (3,)}

Result = subprocess.CompletedProcess[str]


def lay_out(root: Path, **snapshots: Path) -> Result:
    options = [part for name, path in snapshots.items() for part in (f"--{name}", str(path))]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env={**os.environ, "KDEDGE_DATA": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """A checkout with images of two of DTD's classes."""
    folder = tmp_path / "textures"
    for name in CLASSES:
        for i in range(4):
            write(folder / "images" / name / f"{name}_{i}.jpg", f"{name} {i}".encode())
    write(folder / "images" / ".DS_Store", b"junk")
    return folder


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A checkout with DTD's split file."""
    folder = tmp_path / "splits"
    rows = {
        part: [
            [f"{name}/{name}_{i}.jpg", label, name]
            for label, name in enumerate(CLASSES)
            for i in images
        ]
        for part, images in PARTS.items()
    }
    write(folder / "splits" / "split_zhou_DescribableTextures.json", json.dumps(rows).encode())
    return folder


def as_git_directory(checkout: Path, tmp_path: Path) -> Path:
    """The same files as a git directory without a work tree."""
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for line in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *line], check=True)
    bare = tmp_path / f"{checkout.name}.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(checkout), str(bare)], check=True)
    return bare


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_git_directory_gives_the_same_as_its_checkout(
    textures: Path, splits: Path, tmp_path: Path
) -> None:
    done = lay_out(tmp_path / "a", dtd=textures, splits=splits)
    assert done.returncode == 0, done.stderr
    bare = {
        "dtd": as_git_directory(textures, tmp_path),
        "splits": as_git_directory(splits, tmp_path),
    }
    done = lay_out(tmp_path / "b", **bare)
    assert done.returncode == 0, done.stderr
    found = contents(tmp_path / "a")
    assert found == contents(tmp_path / "b")
    assert found["dtd10/train/cracked/cracked_1.jpg"] == b"cracked 1"
    own = sorted(name for name in found if name.startswith("dtd10"))
    assert own == sorted(
        f"dtd10/{part}/{name}/{name}_{i}.jpg"
        for part, images in PARTS.items()
        for name in CLASSES
        for i in images
    )


def test_an_interrupted_call_leaves_no_half_a_folder_and_goes_on(
    textures: Path, splits: Path, tmp_path: Path
) -> None:
    sets = tmp_path / "sets"
    bare = as_git_directory(textures, tmp_path)
    name = subprocess.run(
        ["git", f"--git-dir={bare}", "rev-parse", "HEAD:images/cracked/cracked_1.jpg"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    lost = bare / "objects" / name[:2] / name[2:]
    kept = lost.read_bytes()
    lost.unlink()
    done = lay_out(sets, dtd=bare, splits=splits)
    assert done.returncode == 1
    assert "lists cracked/cracked_1.jpg, but does not have it" in done.stderr
    assert not (sets / "dtd10" / "train").exists()
    half = sets / "dtd10/.train.partial/banded/banded_0.jpg"
    written = half.stat().st_mtime_ns
    write(lost, kept)
    done = lay_out(sets, dtd=bare, splits=splits)
    assert done.returncode == 0, done.stderr
    assert (sets / "dtd10/train/banded/banded_0.jpg").stat().st_mtime_ns == written
    assert not [path for path in contents(sets) if "partial" in path]


def test_nothing_that_is_there_is_overwritten(textures: Path, splits: Path, tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    write(sets / "dtd10/train/mine.jpg", b"mine")
    done = lay_out(sets, dtd=textures, splits=splits)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (sets / "dtd10/train").iterdir()] == ["mine.jpg"]
    split = sets / "dtd/split_zhou_DescribableTextures.json"
    split.write_bytes(b"mine")
    done = lay_out(sets, splits=splits)
    assert done.returncode == 1
    assert f"{split} is there with another content" in done.stderr
    assert split.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "is neither a checkout nor a git directory"),
        ("splits", "is it another repository?"),
    ],
)
def test_what_is_no_snapshot_of_the_set_is_refused(
    splits: Path, tmp_path: Path, name: str, message: str
) -> None:
    done = lay_out(tmp_path / "sets", eurosat=tmp_path / name)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "sets").exists()


def test_a_set_that_is_not_as_published_ends_with_the_exit_code_of_its_verification(
    tmp_path: Path,
) -> None:
    write(tmp_path / "snapshot/data/EuroSAT/2750/River/River_1.jpg", b"x")
    done = lay_out(tmp_path / "sets", eurosat=tmp_path / "snapshot")
    assert done.returncode == 3
    assert (tmp_path / "sets/eurosat/2750/River/River_1.jpg").read_bytes() == b"x"
