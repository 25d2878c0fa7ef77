"""Food101: pictures of 101 dishes (Bossard et al., ECCV 2014), in CoOp's split.

CoOp's split is not the set's own in `meta/`: it is drawn from all images, so that its test images
may be official training images. Labels are sorted folder names, names are those
(github.com/KaiyangZhou/CoOp, datasets/food101.py).
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._annotations import folders_in
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import class_folders_in_three

IMAGES = "images"
SPLIT_FILE = "split_zhou_Food101.json"


def _own_split(folder: Path) -> Split:
    images = folder / IMAGES
    return class_folders_in_three(images, {name: name for name in folders_in(images)})


SET = CoopSet(
    name="food101",
    about=__doc__,
    folder="food-101",
    template="a photo of {}, a type of food.",
    license=(
        "Foodspotting's pictures: beyond scientific fair use, ask their owners (the set's own file)"
    ),
    n_classes=101,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 50_500, "val": 20_200, "test": 30_300},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md; hash from tensorflow_datasets, url_checksums/food101.txt
    downloads=(
        Download(
            name="food-101.tar.gz",
            urls=("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
            gives=IMAGES,
            sha256="d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
            n_bytes=4_996_278_331,
            unpack="tar",
            top="food-101",
            mirror=mirror("food101.zip", IMAGES),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),),
            gives=SPLIT_FILE,
        ),
    ),
    own_split=_own_split,
    own_reads=(IMAGES,),
)
