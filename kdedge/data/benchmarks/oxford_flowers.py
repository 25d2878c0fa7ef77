"""Flowers102: 102 kinds of flowers (Nilsback and Zisserman, ICVGIP 2008), in CoOp's split.

Labels are the set's numbers 1 to 102, less one (github.com/KaiyangZhou/CoOp,
datasets/oxford_flowers.py). Without the split file, www.robots.ox.ac.uk/~vgg/data/flowers/102's
`imagelabels.mat` and CoOp's `cat_to_name.json` are read (Google Drive file
1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0).
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._annotations import read_mat, well_formed
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import in_three
from kdedge.files import read_json

IMAGES = "jpg"
SPLIT_FILE = "split_zhou_OxfordFlowers.json"
_LABELS = "imagelabels.mat"
_NAMES = "cat_to_name.json"


def _own_split(folder: Path) -> Split:
    images: dict[int, list[str]] = {}
    labels = read_mat(folder / _LABELS, "labels")
    with well_formed(folder / _LABELS):
        for number, label in enumerate(labels, 1):
            images.setdefault(int(label) - 1, []).append(f"image_{number:05d}.jpg")
    names = read_json(folder / _NAMES)
    with well_formed(folder / _NAMES):
        class_names = [str(names[str(label + 1)]) for label in sorted(images)]
    return in_three(class_names, images)


SET = CoopSet(
    name="oxford_flowers",
    about=__doc__,
    folder="oxford_flowers",
    template="a photo of a {}, a type of flower.",
    license="none stated; the pictures belong to their makers"
    " (www.robots.ox.ac.uk/~vgg/data/flowers)",
    n_classes=102,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 4_093, "val": 1_633, "test": 2_463},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md; hash from tensorflow_datasets, oxford_flowers102/checksums.tsv
    downloads=(
        Download(
            name="102flowers.tgz",
            urls=("https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",),
            gives=IMAGES,
            sha256="2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            n_bytes=344_862_509,
            unpack="tar",
            mirror=mirror("oxford_flowers.zip", IMAGES),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),),
            gives=SPLIT_FILE,
        ),
    ),
    own_split=_own_split,
    own_reads=(_LABELS, _NAMES),
)
