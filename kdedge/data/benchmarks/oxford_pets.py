"""OxfordPets: 37 breeds of cats and dogs (Parkhi et al., CVPR 2012), in CoOp's split.

Labels are the annotation files' breed ids, in alphabetical order ignoring case. Class names are
image file names without the number, in lower case (github.com/KaiyangZhou/CoOp,
datasets/oxford_pets.py). Without the split file, the lists of
www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz are read.
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._annotations import read_lines, unexpected
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import with_official_test

IMAGES = "images"
SPLIT_FILE = "split_zhou_OxfordPets.json"
_TRAINING = "annotations/trainval.txt"
_TEST = "annotations/test.txt"


def _own_split(folder: Path) -> Split:
    names: dict[int, str] = {}
    parts = []
    for file in (_TRAINING, _TEST):
        rows = []
        for line in read_lines(folder / file):
            stem, *numbers = line.split(" ")
            if len(numbers) != 3 or not numbers[0].isdecimal():
                raise unexpected(folder / file, line, "an image, its breed and two more numbers")
            label = int(numbers[0]) - 1
            name = stem.rpartition("_")[0].lower()
            if names.setdefault(label, name) != name:
                raise unexpected(folder / file, line, f"a {names[label]}, as breed {label + 1} is")
            rows.append((f"{stem}.jpg", label))
        parts.append(rows)
    return with_official_test([names[label] for label in sorted(names)], *parts)


SET = CoopSet(
    name="oxford_pets",
    about=__doc__,
    folder="oxford_pets",
    template="a photo of a {}, a type of pet.",
    license="CC BY-SA 4.0; the pictures belong to their makers"
    " (www.robots.ox.ac.uk/~vgg/data/pets)",
    n_classes=37,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 2_944, "val": 736, "test": 3_669},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md; hash from tensorflow_datasets, oxford_iiit_pet/checksums.tsv
    downloads=(
        Download(
            name="images.tar.gz",
            urls=(
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
            ),
            gives=IMAGES,
            sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            n_bytes=791_918_971,
            unpack="tar",
            mirror=mirror("oxford_pets.zip", IMAGES),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),),
            gives=SPLIT_FILE,
        ),
    ),
    own_split=_own_split,
    own_reads=(_TRAINING, _TEST),
)
