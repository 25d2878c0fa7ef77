"""DTD: 47 describable textures (Cimpoi et al., CVPR 2014), in CoOp's split.

CoOp's split is not one of the set's own ten in `labels/`: it is drawn from all images. Labels are
sorted folder names, names are those (github.com/KaiyangZhou/CoOp, datasets/dtd.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdedge.data.benchmarks._annotations import folders_in
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import BenchmarkSource, Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive
from kdedge.data.benchmarks._own_split import class_folders_in_three

FOLDER = "dtd"
TEMPLATE = "{} texture."
LICENSE = "for research (www.robots.ox.ac.uk/~vgg/data/dtd)"
N_CLASSES = 47
N_IMAGES = {"train": 2_820, "val": 1_128, "test": 1_692}
"""arXiv:2403.02781, table 8; val by difference."""

IMAGES = "images"
SPLIT_FILE = "split_zhou_DescribableTextures.json"

DOWNLOADS = (
    Download(
        name="dtd-r1.0.1.tar.gz",
        urls=("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
        gives=IMAGES,
        sha256="e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
        n_bytes=625_239_812,
        unpack="tar",
        top="dtd",
    ),
    Download(
        name=SPLIT_FILE,
        urls=(google_drive("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),),
        gives=SPLIT_FILE,
        sha256="f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
        n_bytes=563_702,
    ),
)
"""CoOp's DATASETS.md; the archive's hash from tensorflow_datasets, url_checksums/dtd.txt."""


def class_names(root: Path) -> tuple[str, ...]:
    """Gives the 47 names in label order."""
    return _set(root).class_names()


def open_source(
    root: Path, *, part: str, class_names: Sequence[str], labeled: bool
) -> BenchmarkSource:
    """Lists the images of a part: train, val or test."""
    return _set(root).open(part, class_names=class_names, labeled=labeled)


def _set(root: Path) -> CoopSet:
    return CoopSet(
        root / FOLDER,
        image_root=IMAGES,
        images=(IMAGES,),
        split_file=SPLIT_FILE,
        downloads=DOWNLOADS,
        n_classes=N_CLASSES,
        n_images=N_IMAGES,
        own_split=_own_split,
        own_reads=(IMAGES,),
    )


def _own_split(folder: Path) -> Split:
    images = folder / IMAGES
    return class_folders_in_three(images, {name: name for name in folders_in(images)})
