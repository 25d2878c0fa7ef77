"""FGVC-Aircraft: photos of 100 variants of aircraft (Maji et al., arXiv:1306.5151).

The parts are the set's own; labels follow `variants.txt`, names are its lines
(github.com/KaiyangZhou/CoOp, datasets/fgvc_aircraft.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdedge.data.benchmarks._annotations import read_lines, unexpected
from kdedge.data.benchmarks._coop_split import (
    PARTS,
    BenchmarkSource,
    Split,
    check_counts,
    open_part,
)
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import require

FOLDER = "fgvc_aircraft"
TEMPLATE = "a photo of a {}, a type of aircraft."
LICENSE = "for non-commercial research; the photos belong to their makers (the set's own README)"
N_CLASSES = 100
N_IMAGES = {"train": 3_334, "val": 3_333, "test": 3_333}
"""arXiv:1306.5151; arXiv:2403.02781, table 8."""

IMAGES = "images"
_NAMES = "variants.txt"
_LISTS = {part: f"images_variant_{part}.txt" for part in PARTS}

_ARCHIVE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"

DOWNLOADS = (
    Download(
        name="fgvc-aircraft-2013b.tar.gz",
        urls=(_ARCHIVE,),
        gives=IMAGES,
        sha256="d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75",
        n_bytes=2_770_575_360,
        unpack="tar",
        top="fgvc-aircraft-2013b/data",
    ),
)
"""CoOp's DATASETS.md; hash from tensorflow_datasets, url_checksums/fgvc.txt."""


def class_names(root: Path) -> tuple[str, ...]:
    """Gives the 100 names in label order."""
    return _read(root / FOLDER).class_names


def open_source(
    root: Path, *, part: str, class_names: Sequence[str], labeled: bool
) -> BenchmarkSource:
    """Lists the images of a part: train, val or test."""
    folder = root / FOLDER
    require(folder, [IMAGES], DOWNLOADS)
    return open_part(
        folder / IMAGES, _read(folder), part=part, class_names=class_names, labeled=labeled
    )


def _read(folder: Path) -> Split:
    if not (folder / _NAMES).exists():
        require(folder, [IMAGES], DOWNLOADS)
    names = read_lines(folder / _NAMES)
    labels = {name: label for label, name in enumerate(names)}
    parts = {}
    for part, file in _LISTS.items():
        rows = []
        for line in read_lines(folder / file):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise unexpected(folder / file, line, f"an image and a line of {_NAMES}")
            rows.append((f"{image}.jpg", labels[name]))
        parts[part] = tuple(rows)
    split = Split(tuple(names), parts)
    check_counts(
        split,
        what=str(folder),
        n_classes=N_CLASSES,
        n_images=N_IMAGES,
        remedy=f"Get the set once more: {_ARCHIVE}.",
    )
    return split
