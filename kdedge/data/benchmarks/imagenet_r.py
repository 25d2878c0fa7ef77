"""ImageNet-R: drawings, toys and other renditions of 200 ImageNet classes (arXiv:2006.16241).

Labels are sorted WordNet ids of the folders that are there, and only their 200 names compete
(github.com/KaiyangZhou/CoOp, datasets/imagenet_r.py).

There is no training part: the public code of PromptKD distills on the images that it is then tested
on, without their labels (arXiv:2403.02781, section 4.1, and its datasets folder), and so do `train`
and `test` here name the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdedge.data.benchmarks._coop_split import BenchmarkSource
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._imagenet import (
    CLASS_NAMES_DOWNLOAD,
    LICENSE_OF_VARIANTS,
    FolderSet,
)

FOLDER = "imagenet-rendition"
TEMPLATE = "a photo of a {}."
LICENSE = LICENSE_OF_VARIANTS
N_CLASSES = 200
N_IMAGES = {"test": 30_000}
"""arXiv:2006.16241."""

IMAGES = "imagenet-r"

DOWNLOADS = (
    Download(
        name="imagenet-r.tar",
        urls=("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",),
        gives=IMAGES,
        sha256="18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
        n_bytes=2_191_079_936,
        unpack="tar",
    ),
    CLASS_NAMES_DOWNLOAD,
)
"""CoOp's DATASETS.md; hash from tensorflow_datasets, imagenet_r/checksums.tsv."""


def class_names(root: Path) -> tuple[str, ...]:
    """Gives the 200 names in label order."""
    return _set(root).class_names()


def open_source(
    root: Path, *, part: str, class_names: Sequence[str], labeled: bool
) -> BenchmarkSource:
    """Lists the images; the parts train and test are the same ones."""
    return _set(root).open(part, class_names=class_names, labeled=labeled)


def _set(root: Path) -> FolderSet:
    return FolderSet(
        root,
        FOLDER,
        images=dict.fromkeys(("train", "test"), IMAGES),
        downloads=DOWNLOADS,
        n_classes=N_CLASSES,
        n_images=dict.fromkeys(("train", "test"), N_IMAGES["test"]),
    )
