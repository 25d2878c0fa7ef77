"""ImageNet-V2, matched frequency: new test photos of ImageNet's classes (arXiv:1902.10811).

The class folders 0 to 999 are positions in the list of names (github.com/KaiyangZhou/CoOp,
datasets/imagenetv2.py).

There is no training part: the public code of PromptKD distills on the images that it is then tested
on, without their labels (arXiv:2403.02781, section 4.1, and its datasets folder), and so do `train`
and `test` here name the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdedge.data.benchmarks._coop_split import BenchmarkSource
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._imagenet import CLASS_NAMES_DOWNLOAD, FolderSet

FOLDER = "imagenetv2"
TEMPLATE = "a photo of a {}."
LICENSE = "Flickr's pictures, to be used as ImageNet is (github.com/modestyachts/ImageNetV2)"
N_CLASSES = 1000
N_IMAGES = {"test": 10_000}
"""arXiv:1902.10811."""

IMAGES = "imagenetv2-matched-frequency-format-val"

DOWNLOADS = (
    Download(
        name="imagenetv2-matched-frequency.tar.gz",
        urls=(
            "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
            "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
        ),
        gives=IMAGES,
        sha256="f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
        n_bytes=1_264_079_360,
        unpack="tar",
    ),
    CLASS_NAMES_DOWNLOAD,
)
"""CoOp's DATASETS.md; hash from tensorflow_datasets, imagenet_v2/checksums.tsv."""


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
        is_numbered=True,
    )
