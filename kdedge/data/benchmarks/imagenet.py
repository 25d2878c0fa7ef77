"""ImageNet: photos of 1000 classes (ILSVRC 2012; Russakovsky et al., arXiv:1409.0575).

The published tables test on the official validation images, which are the part `test` here; there
is no part `val`. Labels are sorted WordNet ids. CoOp reads each folder in the order in which the
file system gives it, so that its few-shot samples differ between machines; files are sorted here
(github.com/KaiyangZhou/CoOp, datasets/imagenet.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdedge.data.benchmarks._coop_split import BenchmarkSource
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._imagenet import CLASS_NAMES_DOWNLOAD, FolderSet

FOLDER = "imagenet"
TEMPLATE = "a photo of a {}."
LICENSE = "for non-commercial research and education, after registering at image-net.org"
N_CLASSES = 1000
N_IMAGES = {"train": 1_281_167, "test": 50_000}
"""arXiv:2403.02781, table 8."""

IMAGES = {"train": "images/train", "test": "images/val"}

DOWNLOADS = (
    Download(
        name=IMAGES["train"],
        urls=(),
        gives=IMAGES["train"],
        manual="Register at https://image-net.org, fetch ILSVRC2012_img_train.tar, and unpack it"
        " and the tar file of each class, into a folder named as that.",
    ),
    Download(
        name=IMAGES["test"],
        urls=(),
        gives=IMAGES["test"],
        manual="Register at https://image-net.org, fetch ILSVRC2012_img_val.tar, and sort its"
        " images into class folders as those of the training images.",
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
    """Lists the images of a part: train or test."""
    return _set(root).open(part, class_names=class_names, labeled=labeled)


def _set(root: Path) -> FolderSet:
    return FolderSet(
        root,
        FOLDER,
        images=IMAGES,
        downloads=DOWNLOADS,
        n_classes=N_CLASSES,
        n_images=N_IMAGES,
    )
