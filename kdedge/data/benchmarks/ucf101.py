"""UCF101: middle frames of videos of 101 actions (Soomro et al., arXiv:1212.0402), in CoOp's split.

Labels are the numbers of `classInd.txt`, less one; a name is the action's with an underscore before
each capital (github.com/KaiyangZhou/CoOp, datasets/ucf101.py). Without the split file, the lists of
www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kdedge.data.benchmarks._annotations import read_lines, unexpected
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import with_official_test

IMAGES = "UCF-101-midframes"
SPLIT_FILE = "split_zhou_UCF101.json"
_NAMES = "ucfTrainTestlist/classInd.txt"
_TRAINING = "ucfTrainTestlist/trainlist01.txt"
_TEST = "ucfTrainTestlist/testlist01.txt"


def _own_split(folder: Path) -> Split:
    labels: dict[str, int] = {}
    for line in read_lines(folder / _NAMES):
        number, _, action = line.partition(" ")
        if not number.isdecimal() or int(number) - 1 in labels.values() or not action:
            raise unexpected(folder / _NAMES, line, "a number that no other has, and an action")
        labels[action] = int(number) - 1
    names = [_spaced(action) for action in sorted(labels, key=lambda action: labels[action])]
    training = _rows(folder / _TRAINING, labels)
    return with_official_test(names, training, _rows(folder / _TEST, labels))


def _rows(file: Path, labels: Mapping[str, int]) -> list[tuple[str, int]]:
    rows = []
    for line in read_lines(file):
        action, _, video = line.split(" ")[0].partition("/")
        if action not in labels or not video.endswith(".avi"):
            raise unexpected(file, line, "an action and a video, as in YoYo/v_YoYo_g01_c01.avi")
        rows.append((f"{_spaced(action)}/{video.removesuffix('.avi')}.jpg", labels[action]))
    return rows


def _spaced(action: str) -> str:
    """BabyCrawling -> Baby_Crawling, which is also its folder of images."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


SET = CoopSet(
    name="ucf101",
    about=__doc__,
    folder="ucf101",
    template="a photo of a person doing {}.",
    license="none stated; videos of YouTube (www.crcv.ucf.edu/data/UCF101.php)",
    n_classes=101,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 7_639, "val": 1_898, "test": 3_783},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md
    downloads=(
        Download(
            name="UCF-101-midframes.zip",
            urls=(google_drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),),
            gives=IMAGES,
            unpack="zip",
            mirror=mirror("ucf101.zip", IMAGES),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),),
            gives=SPLIT_FILE,
        ),
    ),
    own_split=_own_split,
    own_reads=(_NAMES, _TRAINING, _TEST),
)
