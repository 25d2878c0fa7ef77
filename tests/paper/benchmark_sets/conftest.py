"""Miniatures of the sets: a few classes in the real layout, with real file names and formats."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kdedge.paper.benchmark_sets import CoopSet, benchmark_set

N = 10
"""Images of each class, which a split divides: 5, 2, 3."""


@dataclass(frozen=True)
class Miniature:
    """A small copy of a set.

    Attributes:
        benchmark: the set, which expects the miniature's counts.
        folder: of the set.
        names: in label order.
        n_images: part -> images.
    """

    benchmark: Any
    folder: Path
    names: tuple[str, ...]
    n_images: dict[str, int]

    @property
    def root(self) -> Path:
        return self.folder.parent

    def open(self, part: str, names: tuple[str, ...] | None = None, **options: Any) -> Any:
        """Opens a part, labeled unless the options say otherwise."""
        names = self.names if names is None else names
        options = {"labeled": True, **options}
        return self.benchmark.open_source(self.root, part=part, class_names=names, **options)


def touch(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


COOP_NAMES = ("abbey", "indoor church", "hard-leaved pocket orchid", "2012 Acura RL Sedan")


def coop_set(name: str) -> Callable[[Path], list[str]]:
    """Writes the images of a set that CoOp's file divides, and that file."""
    benchmark = benchmark_set(name)
    assert isinstance(benchmark, CoopSet)

    def writer(folder: Path) -> list[str]:
        images = [file.path for file in benchmark.downloads if file.has_images]
        top = images if not benchmark.image_root else [""]
        rows: list[list[Any]] = []
        for label, class_name in enumerate(COOP_NAMES):
            files = [f"{top[i % len(top)]}/{class_name}/{i}.jpg".lstrip("/") for i in range(N)]
            touch(folder / benchmark.image_root, files)
            rows += [[file, label, class_name] for file in files]
        for path in images:
            (folder / path).mkdir(exist_ok=True)
        random.Random(0).shuffle(rows)
        by_label = [[row for row in rows if row[1] == label] for label in range(len(COOP_NAMES))]
        ends = {"train": (0, 5), "val": (5, 7), "test": (7, N)}
        split = {
            part: [row for own in by_label for row in own[start:end]]
            for part, (start, end) in ends.items()
        }
        (folder / benchmark.lists[0]).write_text(json.dumps(split))
        return list(COOP_NAMES)

    return writer


def fgvc_aircraft(folder: Path) -> list[str]:
    variants = ["707-320", "727-200", "Eurofighter Typhoon"]
    write(folder / "variants.txt", variants)
    for start, part in enumerate(("train", "val", "test")):
        rows = [(1000000 * (start + 1) + i, variants[i % 3]) for i in range(N)]
        write(folder / f"images_variant_{part}.txt", [f"{i} {variant}" for i, variant in rows])
        touch(folder / "images", [f"{i}.jpg" for i, _ in rows])
    return variants


WORDNET_IDS = ("n01440764", "n03773504", "n04008634", "n04355933", "n04356056")
CLASS_NAMES = ("tench", "missile", "missile", "sunglasses", "sunglasses")
DISTINCT_NAMES = ("tench", "missile", "projectile", "sunglass", "sunglasses")


def class_names_file(folder: Path) -> None:
    rows = zip(WORDNET_IDS, CLASS_NAMES, strict=True)
    write(folder / "classnames.txt", [f"{wordnet_id} {name}" for wordnet_id, name in rows])


def imagenet(folder: Path) -> list[str]:
    class_names_file(folder)
    for wordnet_id in WORDNET_IDS:
        touch(folder / "images/train", [f"{wordnet_id}/{wordnet_id}_{i}.JPEG" for i in range(N)])
        images = [f"{wordnet_id}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(N // 2)]
        touch(folder / "images/val", images)
    return list(DISTINCT_NAMES)


def imagenetv2(folder: Path) -> list[str]:
    class_names_file(folder)
    images = folder / "imagenetv2-matched-frequency-format-val"
    touch(images, [f"{label}/{i:040x}.jpeg" for label in range(5) for i in range(N)])
    return list(DISTINCT_NAMES)


def imagenet_sketch(folder: Path) -> list[str]:
    class_names_file(folder)
    touch(folder / "images", [f"{w}/sketch_{i}.JPEG" for w in WORDNET_IDS for i in range(N)])
    return list(DISTINCT_NAMES)


def imagenet_a(folder: Path) -> list[str]:
    class_names_file(folder.parent / "imagenet")
    images = folder / "imagenet-a"
    names = [f"{w}/0.{i:06d}_fish _ tench_0.9.jpg" for w in WORDNET_IDS[:2] for i in range(N)]
    touch(images, [*names, "README.txt"])
    return ["tench", "missile"]


def imagenet_r(folder: Path) -> list[str]:
    class_names_file(folder)
    images = folder / "imagenet-r"
    names = [f"{w}/art_{i}.jpg" for w in (WORDNET_IDS[0], WORDNET_IDS[2]) for i in range(N)]
    touch(images, [*names, "README.txt"])
    return ["tench", "projectile"]


WRITERS: dict[str, Callable[[Path], list[str]]] = {
    one.__name__: one
    for one in (fgvc_aircraft, imagenet, imagenetv2, imagenet_sketch, imagenet_a, imagenet_r)
}


def counts(name: str, n_classes: int) -> dict[str, int]:
    """Images that each part of a miniature has."""
    if name == "fgvc_aircraft":
        return {"train": N, "val": N, "test": N}
    if name.startswith("imagenet"):
        n = N * n_classes
        return {"train": n, "test": n // 2} if name == "imagenet" else {"test": n}
    return {"train": 5 * n_classes, "val": 2 * n_classes, "test": 3 * n_classes}


@pytest.fixture
def miniature(tmp_path: Path, add_benchmark: Callable[..., None]) -> Callable[[str], Miniature]:
    """Writes a set's miniature, and installs it as `small_<name>`."""

    def make(name: str) -> Miniature:
        published = benchmark_set(name)
        folder = tmp_path / published.folder
        folder.mkdir(parents=True)
        names = tuple((WRITERS.get(name) or coop_set(name))(folder))
        n_images = counts(name, len(names))
        small = f"small_{name}"
        benchmark = replace(published, name=small, n_classes=len(names), n_images=n_images)
        add_benchmark(benchmark)
        return Miniature(benchmark, folder, names, n_images)

    return make
