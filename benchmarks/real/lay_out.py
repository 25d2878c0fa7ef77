"""Lays out real benchmark sets in the folder that KDEDGE_DATA names, from public repositories.

    export KDEDGE_DATA=/data/sets
    python benchmarks/real/lay_out.py --eurosat REPO --caltech101 REPO --splits REPO --dtd REPO

Each REPO is a checkout or a git directory without one; leave out what is not needed.

    --eurosat     github.com/YongKyeom/cv-hw3-eurosat-detectron:
                  data/EuroSAT/2750, 27,000 images
    --caltech101  github.com/MachineLearning2020/Homework2-Caltech101:
                  101_ObjectCategories, 9,144 images
    --splits      github.com/linzhiqiu/cross_modal_adaptation: splits/ has CoOp's split files
    --dtd         github.com/pan8915/DeepTexture: images/ has ten of DTD's classes. They become a
                  set of own images, dtd10/{train,val,test}/<class>, in the parts of CoOp's split
                  of all 47 classes, which --splits gives

Then `kdedge data verify` compares each set. Nothing that is there is overwritten, and a folder of
images appears when it is whole. Repeat a call that was interrupted: it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from kdedge.data.benchmark_sets import benchmark_root
from kdedge.files import write_atomic
from kdedge.paper.benchmark_sets import PARTS, CoopSet
from kdedge.paper.benchmark_sets.api import list_sets

IMAGES = {"eurosat": "data/EuroSAT/2750", "caltech101": "101_ObjectCategories"}
JUNK = {".DS_Store", "tmp"}


def fail(message: str) -> SystemExit:
    """The end of the script, with one message."""
    return SystemExit(f"lay_out: {message}")


class Snapshot:
    """A repository's newest files: a checkout, or a git directory.

    Args:
        path: of either.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_git = (path / "HEAD").is_file() and (path / "objects").is_dir()
        if not self._is_git and (not path.is_dir() or not any(path.iterdir())):
            raise fail(f"{path} is neither a checkout nor a git directory.")

    def list(self, below: str) -> dict[str, str]:
        """Path below a folder -> the name by which `read` finds it, without hidden files."""
        if self._is_git:
            lines = self._git("ls-tree", "-r", "-z", "HEAD", f"{below}/").split(b"\0")
            found = dict(self._entry(line) for line in lines if line)
        else:
            files = [file for file in (self._path / below).rglob("*") if file.is_file()]
            found = {file.relative_to(self._path).as_posix(): str(file) for file in files}
        own = {path.removeprefix(f"{below}/"): name for path, name in found.items()}
        if not own:
            raise fail(f"{self._path} has no files in {below}: is it another repository?")
        return {p: own[p] for p in sorted(own) if PurePosixPath(p).name not in JUNK}

    def read(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """The contents of files in this order; None for one that the snapshot lists but lacks."""
        if not self._is_git:
            yield from (Path(name).read_bytes() for name in names)
            return
        line = ["git", f"--git-dir={self._path}", "cat-file", "--batch"]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for name in names:
                process.stdin.write(f"{name}\n".encode())
                process.stdin.flush()
                head = process.stdout.readline().split()
                if head[1:] == [b"missing"]:
                    yield None
                    continue
                data = process.stdout.read(int(head[2]) + 1)
                yield data[:-1]
            process.stdin.close()

    def _git(self, *arguments: str) -> bytes:
        line = ["git", f"--git-dir={self._path}", *arguments]
        done = subprocess.run(line, capture_output=True, check=False)
        if done.returncode:
            raise fail(f"{self._path}: git says: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    @staticmethod
    def _entry(line: bytes) -> tuple[str, str]:
        head, _, path = line.partition(b"\t")
        return path.decode(), head.split()[2].decode()


def write_images(snapshot: Snapshot, files: dict[str, str], folder: Path) -> None:
    """Writes images to a folder that appears when it has them all.

    Args:
        snapshot: has them.
        files: path below the folder -> name in the snapshot.
        folder: is left alone if it is there.
    """
    if folder.exists():
        print(f"{folder} is there already.")
        return
    partial = folder.with_name(f".{folder.name}.partial")
    wanted = {path: name for path, name in files.items() if not (partial / path).exists()}
    for path, data in zip(wanted, snapshot.read(list(wanted.values())), strict=True):
        if data is None:
            raise fail(f"the snapshot lists {path}, but does not have it.")
        file = partial / path
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_bytes(data)
        new.replace(file)
    partial.rename(folder)
    print(f"Wrote {folder}: {len(files):,} images.")


def write_new(file: Path, data: bytes) -> bool:
    """Writes a file unless it is there with this content; another content is an error."""
    if file.exists():
        if file.read_bytes() != data:
            raise fail(
                f"{file} is there with another content.\n  Move it away and repeat the call."
            )
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, data)
    return True


def coop_sets() -> dict[str, CoopSet]:
    """The sets in CoOp's layout that have one of its split files."""
    loaded = {name: one.benchmark for name, one in list_sets().items()}
    return {
        name: one
        for name, one in loaded.items()
        if isinstance(one, CoopSet) and one.lists[0].startswith("split_")
    }


def write_splits(snapshot: Snapshot, root: Path) -> None:
    """Writes the split file of each set that the snapshot has."""
    splits = snapshot.list("splits")
    for name, one in coop_sets().items():
        file = root / one.folder / one.lists[0]
        (data,) = snapshot.read([splits[file.name]]) if file.name in splits else (None,)
        if data is None:
            print(f"{name}: the snapshot does not have {file.name}; nothing is written.")
        elif write_new(file, data):
            print(f"Wrote {file}.")


def write_dtd10(snapshot: Snapshot, root: Path) -> None:
    """Writes ten of DTD's classes as three folders of own images."""
    one = coop_sets()["dtd"]
    split_file = root / one.folder / one.lists[0]
    if not split_file.is_file():
        raise fail(
            f"{split_file} is missing: it says which images are in which part.\n  Give --splits."
        )
    files, split = snapshot.list("images"), json.loads(split_file.read_text(encoding="utf-8"))
    classes = {path.partition("/")[0] for path in files}
    for part in PARTS:
        rows = [path for path, _, _ in split[part] if path.partition("/")[0] in classes]
        lacking = [path for path in rows if path not in files]
        if lacking:
            raise fail(f"the snapshot of DTD lacks {len(lacking)} images, first {lacking[0]}.")
        write_images(snapshot, {path: files[path] for path in rows}, root / "dtd10" / part)


def verify(names: Sequence[str]) -> int:
    """Compares sets with what is published; the highest exit code."""
    line = [sys.executable, "-m", "kdedge", "data", "verify"]
    return max((subprocess.run([*line, name], check=False).returncode for name in names), default=0)


def main() -> int:
    """Lays out what is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("eurosat", "caltech101", "splits", "dtd"):
        parser.add_argument(f"--{name}", type=Path, metavar="REPO")
    arguments = parser.parse_args()
    if not any(vars(arguments).values()):
        parser.error("name a repository: --eurosat, --caltech101, --splits or --dtd")
    if not os.environ.get("KDEDGE_DATA"):
        raise fail("KDEDGE_DATA is not set.\n  Set it to the folder of the benchmark sets.")
    root = benchmark_root(None)
    laid_out = []
    for name, below in IMAGES.items():
        path = getattr(arguments, name)
        if path is not None:
            snapshot, one = Snapshot(path), coop_sets()[name]
            write_images(snapshot, snapshot.list(below), root / one.folder / one.image_root)
            laid_out.append(name)
    if arguments.splits is not None:
        write_splits(Snapshot(arguments.splits), root)
    if arguments.dtd is not None:
        write_dtd10(Snapshot(arguments.dtd), root)
    return verify(laid_out)


if __name__ == "__main__":
    sys.exit(main())
