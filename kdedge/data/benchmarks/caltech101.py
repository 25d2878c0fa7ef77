"""Caltech101: pictures of objects (Fei-Fei et al., 2004), in CoOp's split.

100 of the 102 folders are classes, in byte order, so that names with capitals come first. CoOp
leaves out the background and the second folder of faces and renames four
(github.com/KaiyangZhou/CoOp, datasets/caltech101.py).
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._annotations import folders_in
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import class_folders_in_three

IMAGES = "101_ObjectCategories"
SPLIT_FILE = "split_zhou_Caltech101.json"
_IGNORED = ("BACKGROUND_Google", "Faces_easy")
_RENAMED = {
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
}


def _own_split(folder: Path) -> Split:
    images = folder / IMAGES
    folders = [name for name in folders_in(images) if name not in _IGNORED]
    return class_folders_in_three(images, {name: _RENAMED.get(name, name) for name in folders})


SET = CoopSet(
    name="caltech101",
    about=__doc__,
    folder="caltech-101",
    template="a photo of a {}.",
    license="CC BY 4.0 (data.caltech.edu/records/mzrjq-6wc02)",
    n_classes=100,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 4_128, "val": 1_649, "test": 2_465},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md
    downloads=(
        Download(
            name="101_ObjectCategories.tar.gz",
            urls=(
                "http://www.vision.caltech.edu/Image_Datasets/Caltech101/101_ObjectCategories.tar.gz",
                google_drive("137RyRjvTBkBiIfeYBNZBtViDHQ6_Ewsp"),
            ),
            gives=IMAGES,
            # Of the second address (tensorflow_datasets, caltech101/checksums.tsv)
            sha256="af6ece2f339791ca20f855943d8b55dd60892c0a25105fcd631ee3d6430f9926",
            n_bytes=131_740_031,
            unpack="tar",
            mirror=mirror("caltech-101.zip", IMAGES),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),),
            gives=SPLIT_FILE,
        ),
    ),
    own_split=_own_split,
    own_reads=(IMAGES,),
)
