"""ImageNet-Sketch: black-and-white sketches of ImageNet's classes (arXiv:1905.13549).

Labels are sorted WordNet ids (github.com/KaiyangZhou/CoOp, datasets/imagenet_sketch.py).

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
from kdedge.data.benchmarks._origins import google_drive

FOLDER = "imagenet-sketch"
TEMPLATE = "a photo of a {}."
LICENSE = LICENSE_OF_VARIANTS
N_CLASSES = 1000
N_IMAGES = {"test": 50_889}
"""arXiv:1905.13549."""

IMAGES = "images"

DOWNLOADS = (
    Download(
        name="ImageNet-Sketch.zip",
        urls=(google_drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"),),
        gives=IMAGES,
        sha256="4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed",
        n_bytes=7_593_573_012,
        unpack="zip",
        into=IMAGES,
        top="sketch",
    ),
    CLASS_NAMES_DOWNLOAD,
)
"""CoOp's DATASETS.md; hash from tensorflow_datasets, imagenet_sketch/checksums.tsv."""


def class_names(root: Path) -> tuple[str, ...]:
    """Gives the 1000 names in label order."""
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
