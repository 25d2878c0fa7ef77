"""StanfordCars: 196 models of cars (Krause et al., 3dRR 2013), in CoOp's split.

Labels are the development kit's class numbers; a name has the year in front, which the kit has at
the end (github.com/KaiyangZhou/CoOp, datasets/stanford_cars.py). Without the split file, the labels
of ai.stanford.edu/~jkrause/cars/car_devkit.tgz and car196/cars_test_annos_withlabels.mat are read.
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._annotations import read_mat, well_formed
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import with_official_test

IMAGES = ("cars_train", "cars_test")
SPLIT_FILE = "split_zhou_StanfordCars.json"
_NAMES = "devkit/cars_meta.mat"
_TRAINING = "devkit/cars_train_annos.mat"
_TEST = "cars_test_annos_withlabels.mat"


def _own_split(folder: Path) -> Split:
    names = read_mat(folder / _NAMES, "class_names")
    with well_formed(folder / _NAMES):
        names = [_year_first(str(name)) for name in names]
    training = _rows(folder / _TRAINING, "cars_train")
    return with_official_test(names, training, _rows(folder / _TEST, "cars_test"))


def _year_first(name: str) -> str:
    model, _, year = name.rpartition(" ")
    return f"{year} {model}"


def _rows(file: Path, images: str) -> list[tuple[str, int]]:
    cars = read_mat(file, "annotations")
    with well_formed(file):
        return [(f"{images}/{car['fname']}", int(car["class"]) - 1) for car in cars]


SET = CoopSet(
    name="stanford_cars",
    about=__doc__,
    folder="stanford_cars",
    template="a photo of a {}.",
    license="none stated with the files; see ai.stanford.edu/~jkrause/cars/car_dataset.html",
    n_classes=196,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 6_509, "val": 1_635, "test": 8_041},
    image_root="",
    images=IMAGES,
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md; hashes from tensorflow_datasets, url_checksums/cars196.txt
    downloads=(
        Download(
            name="cars_train.tgz",
            urls=("http://ai.stanford.edu/~jkrause/car196/cars_train.tgz",),
            gives="cars_train",
            sha256="512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
            n_bytes=979_269_282,
            unpack="tar",
            mirror=mirror("stanford_cars.zip", "cars_train"),
        ),
        Download(
            name="cars_test.tgz",
            urls=("http://ai.stanford.edu/~jkrause/car196/cars_test.tgz",),
            gives="cars_test",
            sha256="bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
            n_bytes=977_350_468,
            unpack="tar",
            mirror=mirror("stanford_cars.zip", "cars_test"),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),),
            gives=SPLIT_FILE,
        ),
    ),
    own_split=_own_split,
    own_reads=(_NAMES, _TRAINING, _TEST),
)
