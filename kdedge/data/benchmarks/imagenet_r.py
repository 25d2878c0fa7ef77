"""ImageNet-R: drawings, toys and other renditions of 200 ImageNet classes (arXiv:2006.16241).

Labels are sorted WordNet ids of the folders that are there, and only their 200 names compete
(github.com/KaiyangZhou/CoOp, datasets/imagenet_r.py).

There is no training part: the public code of PromptKD distills on the images that it is then tested
on, without their labels (arXiv:2403.02781, section 4.1, and its datasets folder), and so do `train`
and `test` here name the same images.
"""

from __future__ import annotations

from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._imagenet import (
    CLASS_NAMES_DOWNLOAD,
    LICENSE_OF_VARIANTS,
    FolderSet,
)
from kdedge.data.benchmarks._origins import mirror

IMAGES = "imagenet-r"


SET = FolderSet(
    name="imagenet_r",
    about=__doc__,
    folder="imagenet-rendition",
    template="a photo of a {}.",
    license=LICENSE_OF_VARIANTS,
    n_classes=200,
    # arXiv:2006.16241
    n_images={"test": 30_000},
    images=dict.fromkeys(("train", "test"), IMAGES),
    # CoOp's DATASETS.md; hash from tensorflow_datasets, imagenet_r/checksums.tsv
    downloads=(
        Download(
            name="imagenet-r.tar",
            urls=("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",),
            gives=IMAGES,
            sha256="18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
            n_bytes=2_191_079_936,
            unpack="tar",
            mirror=mirror("imagenet-rendition.zip", IMAGES),
        ),
        CLASS_NAMES_DOWNLOAD,
    ),
)
