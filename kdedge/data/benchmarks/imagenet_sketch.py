"""ImageNet-Sketch: black-and-white sketches of ImageNet's classes (arXiv:1905.13549).

Labels are sorted WordNet ids (github.com/KaiyangZhou/CoOp, datasets/imagenet_sketch.py).

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
from kdedge.data.benchmarks._origins import google_drive, mirror

IMAGES = "images"


SET = FolderSet(
    name="imagenet_sketch",
    about=__doc__,
    folder="imagenet-sketch",
    template="a photo of a {}.",
    license=LICENSE_OF_VARIANTS,
    n_classes=1000,
    # arXiv:1905.13549
    n_images={"test": 50_889},
    images=dict.fromkeys(("train", "test"), IMAGES),
    # CoOp's DATASETS.md; hash from tensorflow_datasets, imagenet_sketch/checksums.tsv
    downloads=(
        Download(
            name="ImageNet-Sketch.zip",
            urls=(google_drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"),),
            gives=IMAGES,
            sha256="4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed",
            n_bytes=7_593_573_012,
            unpack="zip",
            into=IMAGES,
            top="sketch",
            mirror=mirror("imagenet-sketch.zip", IMAGES),
        ),
        CLASS_NAMES_DOWNLOAD,
    ),
)
