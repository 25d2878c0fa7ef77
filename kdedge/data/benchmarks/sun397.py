"""SUN397: 397 kinds of scenes (Xiao et al., CVPR 2010), in CoOp's split.

Labels follow the order of the set's `ClassName.txt`; names are its paths without the first letter,
read backwards: `/c/church/indoor` is "indoor church" (github.com/KaiyangZhou/CoOp,
datasets/sun397.py). Without the split file, the lists of
vision.princeton.edu/projects/2010/SUN/download/Partitions.zip are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdedge.data.benchmarks._annotations import read_lines, unexpected
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import with_official_test

IMAGES = "SUN397"
SPLIT_FILE = "split_zhou_SUN397.json"
_NAMES = "ClassName.txt"
_TRAINING = "Training_01.txt"
_TEST = "Testing_01.txt"


def _own_split(folder: Path) -> Split:
    classes = [line.removeprefix("/") for line in read_lines(folder / _NAMES)]
    labels = {path: label for label, path in enumerate(classes)}
    names = [" ".join(reversed(path.split("/")[1:])) for path in classes]
    training = _rows(folder / _TRAINING, labels)
    return with_official_test(names, training, _rows(folder / _TEST, labels))


def _rows(file: Path, labels: Mapping[str, int]) -> list[tuple[str, int]]:
    rows = []
    for line in read_lines(file):
        path = line.removeprefix("/")
        scene = path.rpartition("/")[0]
        if scene not in labels:
            raise unexpected(file, line, f"an image in a folder of {_NAMES}")
        rows.append((path, labels[scene]))
    return rows


SET = CoopSet(
    name="sun397",
    about=__doc__,
    folder="sun397",
    template="a photo of a {}.",
    license="for research, under the SUN database's terms (vision.princeton.edu/projects/2010/SUN)",
    n_classes=397,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 15_880, "val": 3_970, "test": 19_850},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md; hash from tensorflow_datasets, sun397/checksums.tsv. The official URL is
    # gone (github.com/pytorch/vision/issues/9348).
    downloads=(
        Download(
            name="SUN397.tar.gz",
            urls=("https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",),
            gives=IMAGES,
            sha256="f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
            n_bytes=39_077_296_924,
            unpack="tar",
            mirror=mirror(
                "sun397.zip",
                IMAGES,
                sha256="ce6dee6685c9f1d592c8297e193dde885aa9c50d008fd998a38ccc57a3dda722",
                n_bytes=39_182_693_483,
            ),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),),
            gives=SPLIT_FILE,
        ),
    ),
    own_split=_own_split,
    own_reads=(_NAMES, _TRAINING, _TEST),
)
