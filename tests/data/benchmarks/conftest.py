"""Miniatures of the sets: a few classes in the real layout, with real file names and formats."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.data.benchmarks import eurosat as eurosat_set

N = 10
"""Images of each class that a rule divides: 5, 2, 3; or 8 and 2, beside as many official ones."""


@dataclass(frozen=True)
class Miniature:
    """A small copy of a set.

    Attributes:
        benchmark: the set, which expects the miniature's counts.
        folder: of the set.
        names: in label order.
        n_images: part -> images.
        split_file: name of CoOp's file, None where CoOp has none.
    """

    benchmark: Any
    folder: Path
    names: tuple[str, ...]
    n_images: dict[str, int]
    split_file: str | None


def touch(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def struct(**columns: list[Any]) -> np.ndarray:
    """A MATLAB struct array of one row, as the sets have it."""
    n = len(next(iter(columns.values())))
    array = np.empty((1, n), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        array[name][0, :] = values
    return array


def cell(values: list[str]) -> np.ndarray:
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return array


def caltech101(folder: Path) -> list[str]:
    images = folder / "101_ObjectCategories"
    for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "accordion", "airplanes"):
        touch(images, [f"{name}/image_{i:04d}.jpg" for i in range(1, N + 1)])
    touch(images, ["BACKGROUND_Google/tmp"])
    return ["face", "leopard", "accordion", "airplane"]


def oxford_pets(folder: Path) -> list[str]:
    breeds = ["Abyssinian", "american_bulldog", "Bengal"]
    for file, start in (("trainval", 1), ("test", 101)):
        rows = [(f"{b}_{start + i}", breed) for breed, b in enumerate(breeds, 1) for i in range(N)]
        write(folder / f"annotations/{file}.txt", [f"{stem} {breed} 1 1" for stem, breed in rows])
        touch(folder / "images", [f"{stem}.jpg" for stem, _ in rows])
    touch(folder / "images", ["Abyssinian_100.mat"])
    return ["abyssinian", "american_bulldog", "bengal"]


def stanford_cars(folder: Path) -> list[str]:
    scipy_io = pytest.importorskip("scipy.io")
    models = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    (folder / "devkit").mkdir(parents=True)
    scipy_io.savemat(folder / "devkit/cars_meta.mat", {"class_names": cell(models)})
    names = [f"{i:05d}.jpg" for i in range(1, 2 * N + 1)]
    labels = [1 + i % 2 for i in range(2 * N)]
    boxes = {f"bbox_{side}": [5] * 2 * N for side in ("x1", "y1", "x2", "y2")}
    cars = {"annotations": struct(**boxes, **{"class": labels, "fname": names})}
    for file, images in (
        ("devkit/cars_train_annos.mat", "cars_train"),
        ("cars_test_annos_withlabels.mat", "cars_test"),
    ):
        scipy_io.savemat(folder / file, cars)
        touch(folder / images, names)
    return ["2000 AM General Hummer SUV", "2012 Acura RL Sedan"]


def oxford_flowers(folder: Path) -> list[str]:
    scipy_io = pytest.importorskip("scipy.io")
    labels = [2] * N + [1] * N
    touch(folder / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 2 * N + 1)])
    scipy_io.savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid"}
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    return list(names.values())


def food101(folder: Path) -> list[str]:
    for name in ("apple_pie", "baby_back_ribs", "baklava"):
        touch(folder / "images", [f"{name}/{1005649 + i}.jpg" for i in range(N)])
    write(folder / "meta/classes.txt", ["apple_pie", "baby_back_ribs", "baklava"])
    return ["apple_pie", "baby_back_ribs", "baklava"]


def fgvc_aircraft(folder: Path) -> list[str]:
    variants = ["707-320", "727-200", "Eurofighter Typhoon"]
    write(folder / "variants.txt", variants)
    for start, part in enumerate(("train", "val", "test")):
        rows = [(1000000 * (start + 1) + i, variants[i % 3]) for i in range(N)]
        write(folder / f"images_variant_{part}.txt", [f"{i} {variant}" for i, variant in rows])
        touch(folder / "images", [f"{i}.jpg" for i, _ in rows])
    return variants


def sun397(folder: Path) -> list[str]:
    scenes = ["/a/abbey", "/c/church/indoor", "/c/church/outdoor"]
    write(folder / "ClassName.txt", scenes)
    for start, file in enumerate(("Training_01.txt", "Testing_01.txt")):
        images = [f"{scene}/sun_a{start}{i:015d}.jpg" for scene in scenes for i in range(N)]
        write(folder / file, images)
        touch(folder / "SUN397", [image[1:] for image in images])
    return ["abbey", "indoor church", "outdoor church"]


def dtd(folder: Path) -> list[str]:
    for name in ("banded", "zigzagged"):
        touch(folder / "images", [f"{name}/{name}_{i:04d}.jpg" for i in range(N)])
        touch(folder / "images", [f"{name}/.directory"])
    return ["banded", "zigzagged"]


def eurosat(folder: Path) -> list[str]:
    names = eurosat_set._NAMES
    for name in names:
        touch(folder / "2750", [f"{name}/{name}_{i}.jpg" for i in range(1, N + 1)])
    return list(names.values())


def ucf101(folder: Path) -> list[str]:
    actions = ["ApplyEyeMakeup", "BabyCrawling", "YoYo"]
    spaced = ["Apply_Eye_Makeup", "Baby_Crawling", "Yo_Yo"]
    lists = folder / "ucfTrainTestlist"
    write(lists / "classInd.txt", [f"{i} {action}" for i, action in enumerate(actions, 1)])
    for file, group in (("trainlist01", 8), ("testlist01", 1)):
        lines = []
        for label, (action, shown) in enumerate(zip(actions, spaced, strict=True), 1):
            videos = [f"v_{action}_g{group:02d}_c{i:02d}" for i in range(N)]
            end = f" {label}" if file == "trainlist01" else ""
            lines += [f"{action}/{video}.avi{end}" for video in videos]
            touch(folder / "UCF-101-midframes", [f"{shown}/{video}.jpg" for video in videos])
        write(lists / f"{file}.txt", lines)
    return spaced


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
    writer.__name__: writer
    for writer in (
        *(caltech101, oxford_pets, stanford_cars, oxford_flowers, food101, fgvc_aircraft),
        *(sun397, dtd, eurosat, ucf101),
        *(imagenet, imagenetv2, imagenet_sketch, imagenet_a, imagenet_r),
    )
}
WITH_OFFICIAL_TEST = {"oxford_pets", "stanford_cars", "sun397", "ucf101"}


def counts(name: str, n_classes: int) -> dict[str, int]:
    """Images that each part of a miniature has."""
    if name == "fgvc_aircraft":
        return {"train": N, "val": N, "test": N}
    if name.startswith("imagenet"):
        n = N * n_classes
        return {"train": n, "test": n // 2} if name == "imagenet" else {"test": n}
    if name in WITH_OFFICIAL_TEST:
        return {"train": 8 * n_classes, "val": 2 * n_classes, "test": N * n_classes}
    return {"train": 5 * n_classes, "val": 2 * n_classes, "test": 3 * n_classes}


@pytest.fixture
def miniature(tmp_path: Path, install_benchmark: Callable[..., None]) -> Callable[[str], Miniature]:
    """Writes a set's miniature, without CoOp's split file, and installs it as `small_<name>`."""

    def make(name: str) -> Miniature:
        module = importlib.import_module(f"kdedge.data.benchmarks.{name}")
        folder = tmp_path / module.SET.folder
        names = tuple(WRITERS[name](folder))
        n_images = counts(name, len(names))
        small = f"small_{name}"
        benchmark = replace(module.SET, name=small, n_classes=len(names), n_images=n_images)
        install_benchmark(benchmark, name=small)
        split_file = getattr(benchmark, "split_file", None)
        return Miniature(benchmark, folder, names, n_images, split_file)

    return make


@pytest.fixture
def published_split() -> Callable[[Miniature], dict[str, list[list[Any]]]]:
    """Makes a split of a miniature in CoOp's format, which no rule would make: over all parts."""

    def make(mini: Miniature) -> dict[str, list[list[Any]]]:
        root, rows = mini.folder.parent, []
        for part in mini.n_images:
            source = mini.benchmark.open_source(
                root, part=part, class_names=mini.names, labeled=True
            )
            rows += [[item.key, item.label, mini.names[item.label]] for item in source.items]
        random.Random(0).shuffle(rows)
        taken = iter(rows)
        return {part: [next(taken) for _ in range(n)] for part, n in mini.n_images.items()}

    return make
