"""SUN397: 397 kinds of scenes (Xiao et al., CVPR 2010), in CoOp's split.

Images are for research use under the SUN database's terms. Labels follow the order of the split
file, which is that of the set's `ClassName.txt`; names are its paths read backwards
(`/c/church/indoor` is "indoor church").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdedge.data.benchmarks._coop_split import (
    BenchmarkSource,
    Split,
    open_part,
    read_split,
    require,
)
from kdedge.data.benchmarks._download import Download
from kdedge.errors import DataError

FOLDER = "sun397"
IMAGES = "SUN397"
SPLIT_FILE = "split_zhou_SUN397.json"

ORIGINS = {
    IMAGES: "unpack SUN397.tar.gz from https://vision.princeton.edu/projects/2010/SUN/",
    SPLIT_FILE: "Google Drive file 1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq, named in CoOp's DATASETS.md",
}
"""Both are also in the Hugging Face data set zhengli97/prompt_learning_dataset."""

LICENSE = "for research, under the SUN database's terms; the photos are their owners'"

DOWNLOADS = (
    Download(
        name="SUN397.tar.gz",
        urls=("https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",),
        gives=IMAGES,
        unpack="tar",
    ),
    Download(
        name=SPLIT_FILE,
        urls=("https://drive.google.com/uc?export=download&id=1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",),
        gives=SPLIT_FILE,
    ),
)

N_CLASSES = 397
N_IMAGES = {"train": 15_880, "val": 3_970, "test": 19_850}
"""Of the published split (PromptKD, arXiv:2403.02781, table 8; val by difference)."""


def class_names(root: Path) -> tuple[str, ...]:
    """Gives the 397 names in label order.

    Raises:
        DataError: the split file is missing, or is not the published one.
    """
    # The split file alone tells the names; where it is missing, the message is to name all that is.
    is_there = (root / FOLDER / SPLIT_FILE).exists()
    return _read(root, {SPLIT_FILE: ORIGINS[SPLIT_FILE]} if is_there else ORIGINS).class_names


def open_source(
    root: Path, *, part: str, class_names: Sequence[str], labeled: bool
) -> BenchmarkSource:
    """Lists the images of a part.

    Args:
        root: folder of the benchmark sets; the set is in `sun397` below it.
        part: train, val or test.
        class_names: in class-list order; used where `labeled`.
        labeled: labels are positions in `class_names`.

    Raises:
        DataError: the set is not there, or the class list lacks some of its names.
    """
    split = _read(root, ORIGINS)
    images = root / FOLDER / IMAGES
    return open_part(images, split, part=part, class_names=class_names, labeled=labeled)


def _read(root: Path, needed: dict[str, str]) -> Split:
    folder = root / FOLDER
    require(folder, needed)
    split = read_split(folder / SPLIT_FILE)
    counts = {part: len(rows) for part, rows in split.parts.items()}
    if counts != N_IMAGES or len(split.class_names) != N_CLASSES:
        raise DataError(
            f"{folder / SPLIT_FILE} has {len(split.class_names)} classes and {counts} images, the"
            f" published split {N_CLASSES} and {N_IMAGES}.\n"
            f"  Get the published file: {ORIGINS[SPLIT_FILE]}."
        )
    return split
