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

FOLDER = "imagenet-sketch"
TEMPLATE = "a photo of a {}."
LICENSE = LICENSE_OF_VARIANTS
N_CLASSES = 1000
N_IMAGES = {"test": 50_889}
"""arXiv:1905.13549."""

_IMAGES = "images"

DOWNLOADS = (
    Download(
        name=_IMAGES,
        urls=(),
        gives=_IMAGES,
        manual="Unpack ImageNet-Sketch.zip, Google Drive file 1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA; it"
        " is the folder sketch in it.",
    ),
    CLASS_NAMES_DOWNLOAD,
)
"""CoOp's DATASETS.md."""


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
        images=dict.fromkeys(("train", "test"), _IMAGES),
        downloads=DOWNLOADS,
        n_classes=N_CLASSES,
        n_images=dict.fromkeys(("train", "test"), N_IMAGES["test"]),
    )
