"""ImageNet-V2, matched frequency: new test photos of ImageNet's classes (arXiv:1902.10811).

The class folders 0 to 999 are positions in the list of names (github.com/KaiyangZhou/CoOp,
datasets/imagenetv2.py).

There is no training part: the public code of PromptKD distills on the images that it is then tested
on, without their labels (arXiv:2403.02781, section 4.1, and its datasets folder), and so do `train`
and `test` here name the same images.
"""

from __future__ import annotations

from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._imagenet import CLASS_NAMES_DOWNLOAD, FolderSet
from kdedge.data.benchmarks._origins import mirror

IMAGES = "imagenetv2-matched-frequency-format-val"


SET = FolderSet(
    name="imagenetv2",
    about=__doc__,
    folder="imagenetv2",
    template="a photo of a {}.",
    license="Flickr's pictures, to be used as ImageNet is (github.com/modestyachts/ImageNetV2)",
    n_classes=1000,
    # arXiv:1902.10811
    n_images={"test": 10_000},
    images=dict.fromkeys(("train", "test"), IMAGES),
    is_numbered=True,
    # CoOp's DATASETS.md; hash from tensorflow_datasets, imagenet_v2/checksums.tsv
    downloads=(
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
            mirror=mirror("imagenetv2.zip", IMAGES),
        ),
        CLASS_NAMES_DOWNLOAD,
    ),
)
