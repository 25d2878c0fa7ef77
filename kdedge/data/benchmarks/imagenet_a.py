"""ImageNet-A: photos that fool ImageNet models, of 200 of its classes (arXiv:1907.07174).

Labels are sorted WordNet ids of the folders that are there, and only their 200 names compete
(github.com/KaiyangZhou/CoOp, datasets/imagenet_a.py).

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

IMAGES = "imagenet-a"


SET = FolderSet(
    name="imagenet_a",
    about=__doc__,
    folder="imagenet-adversarial",
    template="a photo of a {}.",
    license=LICENSE_OF_VARIANTS,
    n_classes=200,
    # arXiv:1907.07174
    n_images={"test": 7_500},
    images=dict.fromkeys(("train", "test"), IMAGES),
    # CoOp's DATASETS.md; hash from tensorflow_datasets, imagenet_a/checksums.tsv
    downloads=(
        Download(
            name="imagenet-a.tar",
            urls=("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",),
            gives=IMAGES,
            sha256="3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
            n_bytes=687_552_512,
            unpack="tar",
            mirror=mirror("imagenet-adversarial.zip", IMAGES),
        ),
        CLASS_NAMES_DOWNLOAD,
    ),
)
