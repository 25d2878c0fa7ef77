"""ImageNet and its variants: class names by WordNet id, folders of images.

Names come from CoOp's `classnames.txt` in the set's folder or ImageNet's, if it exists. Otherwise
they come from open_clip's IMAGENET_CLASSNAMES, a later revision of the same list that differs in
some names (both are CLIP's, github.com/openai/CLIP).

CLIP's list has "missile" and "sunglasses" twice. kdedge identifies classes by name, so one of each
pair gets WordNet's name here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks._benchmark import (
    Benchmark,
    Download,
    HubArchive,
    exists,
    google_drive,
    read_lines,
    unexpected,
    unpacked,
)
from kdedge.data.benchmarks._coop_split import CoopSplit, open_part
from kdedge.data.sources import IMAGE_EXTENSIONS, FileSource
from kdedge.errors import DataError, MissingPackage, os_reason

log = logging.getLogger(__name__)

_CLASS_NAMES = "classnames.txt"
_CLASS_NAMES_FILE = Download(_CLASS_NAMES, google_drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"))
"""CoOp's DATASETS.md."""

_LICENSE_OF_VARIANTS = (
    "MIT license for the collection; the pictures belong to their makers: non-commercial research,"
    " as with ImageNet"
)

_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
_IMAGENET = "imagenet"
_WORDNET_NAMES = {"n04008634": "projectile", "n04355933": "sunglass"}


@dataclass(frozen=True)
class FolderSet(Benchmark):
    """ImageNet or a variant of it; a variant uses its test images for training, too.

    Attributes:
        images: part -> folder of class folders, below the set's.
        is_numbered: class folders are named by position in the list of names, not by WordNet id.
    """

    images: Mapping[str, str]
    is_numbered: bool = False

    def class_names(self, root: Path) -> tuple[str, ...]:
        """See `Benchmark.class_names`: sorted by WordNet id, those that have a folder."""
        folders = dict.fromkeys(self.images.values())
        present = [images for images in folders if exists(root / self.folder / images)]
        if not present:
            self.require(root, folders)
        return tuple(self._names(root, present[0]).values())

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> FileSource:
        """See `Benchmark.open_source`: sorted by path."""
        if part not in self.images:
            raise DataError(
                f"{part} is not a part of {self.name}; expected one of {', '.join(self.images)}."
            )
        self.require(root, [self.images[part]])
        names = self._names(root, self.images[part])
        folder = root / self.folder / self.images[part]
        rows = tuple(
            (f"{class_folder}/{file}", label)
            for label, class_folder in enumerate(names)
            for file in _names_in(folder / class_folder)
            if file.lower().endswith(_SUFFIXES)
        )
        n_published = self.n_images.get(part, self.n_images["test"])
        if len(rows) != n_published:
            raise DataError(
                f"{folder} has {len(rows)} images, the published set has {n_published}.\n"
                "  Get the set again; it is used only when complete."
            )
        split = CoopSplit(tuple(names.values()), {part: rows})
        return open_part(folder, split, part=part, class_names=class_names, labeled=labeled)

    def _names(self, root: Path, images: str) -> dict[str, str]:
        """Class folder -> class name, in label order."""
        folder = root / self.folder / images
        folders = [name for name in _names_in(folder) if (folder / name).is_dir()]
        if len(folders) != self.n_classes:
            raise DataError(
                f"{folder} has {len(folders)} class folders, the published set"
                f" has {self.n_classes}.\n  Put the images of each class into its own folder."
            )
        names = _read_names(root, self.folder)
        by_folder = (
            {str(position): name for position, name in enumerate(names.values())}
            if self.is_numbered
            else names
        )
        unknown = [name for name in folders if name not in by_folder]
        if unknown:
            what = "a number from 0" if self.is_numbered else "a WordNet id of ImageNet's"
            raise unexpected(folder, f"a folder {unknown[0]}", what)
        known = set(folders)
        return {key: name for key, name in by_folder.items() if key in known}


def _names_in(folder: Path) -> list[str]:
    """The sorted names in a folder, without hidden ones."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {os_reason(error)}.\n  Get the set's images again."
        ) from error


def _read_names(root: Path, folder: str) -> dict[str, str]:
    """WordNet id -> class name, of all 1000 and in their order, no name twice."""
    files = [root / place / _CLASS_NAMES for place in (folder, _IMAGENET)]
    file = next((file for file in files if exists(file)), None)
    if file is None:
        names = _names_of_open_clip(files[0])
    else:
        rows = [line.partition(" ") for line in read_lines(file)]
        odd = next((row for row in rows if not row[2]), None)
        if odd is not None:
            raise unexpected(file, f"the line {odd[0]}", "a WordNet id and a class name")
        names = {wordnet_id: name for wordnet_id, _, name in rows}
    counts = Counter(names.values())
    for wordnet_id, name in _WORDNET_NAMES.items():
        if counts[names.get(wordnet_id, "")] > 1:
            names[wordnet_id] = name
    return names


def _names_of_open_clip(file: Path) -> dict[str, str]:
    try:
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise MissingPackage(
            "open_clip_torch", extra="train", purpose=f"ImageNet without {_CLASS_NAMES}"
        ) from error
    log.warning(
        "%s is missing: ImageNet's class names are open_clip's, some of which differ from"
        " CoOp's.\n  To get it: %s.",
        file,
        _CLASS_NAMES_FILE.by_hand,
    )
    wordnet_ids = ImageNetInfo("imagenet-1k").label_names()
    return dict(zip(wordnet_ids, IMAGENET_CLASSNAMES, strict=True))


# The variants have no training part: the public code of PromptKD distills on the images that it is
# then tested on, without their labels (arXiv:2403.02781, section 4.1, and its datasets folder), and
# so do `train` and `test` here name the same images. Addresses are from CoOp's DATASETS.md.
IMAGENET_SETS = (
    # The published tables test on the official validation images, which are the part `test` here;
    # there is no part `val`. Labels are sorted WordNet ids, files are sorted by path
    # (github.com/KaiyangZhou/CoOp, datasets/imagenet.py).
    FolderSet(
        name="imagenet",
        about="ImageNet: photos of 1000 classes (ILSVRC 2012; arXiv:1409.0575).",
        folder="imagenet",
        template="a photo of a {}.",
        license="for non-commercial research and education, after registering at image-net.org",
        n_classes=1000,
        # arXiv:2403.02781, table 8
        n_images={"train": 1_281_167, "test": 50_000},
        images={"train": "images/train", "test": "images/val"},
        mirror=None,
        downloads=(
            Download(
                "images/train",
                "Register at https://image-net.org, fetch ILSVRC2012_img_train.tar, and"
                " unpack it and the tar file of each class, into a folder named as that.",
            ),
            Download(
                "images/val",
                "Register at https://image-net.org, fetch ILSVRC2012_img_val.tar, and sort"
                " its images into class folders, as the training images.",
            ),
            _CLASS_NAMES_FILE,
        ),
    ),
    # The class folders 0 to 999 are positions in the list of names (github.com/KaiyangZhou/CoOp,
    # datasets/imagenetv2.py).
    FolderSet(
        name="imagenetv2",
        about="ImageNet-V2, matched frequency: new photos of its classes (arXiv:1902.10811).",
        folder="imagenetv2",
        template="a photo of a {}.",
        license="Flickr's pictures, to be used as ImageNet is (github.com/modestyachts/ImageNetV2)",
        n_classes=1000,
        # arXiv:1902.10811
        n_images={"test": 10_000},
        images=dict.fromkeys(("train", "test"), "imagenetv2-matched-frequency-format-val"),
        mirror=HubArchive("imagenetv2.zip"),
        is_numbered=True,
        downloads=(
            unpacked(
                "imagenetv2-matched-frequency-format-val",
                "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
                "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
            ),
            _CLASS_NAMES_FILE,
        ),
    ),
    # Labels are sorted WordNet ids (github.com/KaiyangZhou/CoOp, datasets/imagenet_sketch.py).
    FolderSet(
        name="imagenet_sketch",
        about="ImageNet-Sketch: black-and-white sketches of ImageNet's classes (arXiv:1905.13549).",
        folder="imagenet-sketch",
        template="a photo of a {}.",
        license=_LICENSE_OF_VARIANTS,
        n_classes=1000,
        # arXiv:1905.13549
        n_images={"test": 50_889},
        images=dict.fromkeys(("train", "test"), "images"),
        mirror=HubArchive("imagenet-sketch.zip"),
        downloads=(
            unpacked("images", google_drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"), top="sketch"),
            _CLASS_NAMES_FILE,
        ),
    ),
    # Labels are sorted WordNet ids of the folders that are there, and only their 200 names compete
    # (github.com/KaiyangZhou/CoOp, datasets/imagenet_a.py).
    FolderSet(
        name="imagenet_a",
        about="ImageNet-A: photos of 200 classes that fool its models (arXiv:1907.07174).",
        folder="imagenet-adversarial",
        template="a photo of a {}.",
        license=_LICENSE_OF_VARIANTS,
        n_classes=200,
        # arXiv:1907.07174
        n_images={"test": 7_500},
        images=dict.fromkeys(("train", "test"), "imagenet-a"),
        mirror=HubArchive("imagenet-adversarial.zip"),
        downloads=(
            unpacked("imagenet-a", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"),
            _CLASS_NAMES_FILE,
        ),
    ),
    # Labels are sorted WordNet ids of the folders that are there, and only their 200 names compete
    # (github.com/KaiyangZhou/CoOp, datasets/imagenet_r.py).
    FolderSet(
        name="imagenet_r",
        about="ImageNet-R: drawings, toys and other renditions of 200 classes (arXiv:2006.16241).",
        folder="imagenet-rendition",
        template="a photo of a {}.",
        license=_LICENSE_OF_VARIANTS,
        n_classes=200,
        # arXiv:2006.16241
        n_images={"test": 30_000},
        images=dict.fromkeys(("train", "test"), "imagenet-r"),
        mirror=HubArchive("imagenet-rendition.zip"),
        downloads=(
            unpacked("imagenet-r", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"),
            _CLASS_NAMES_FILE,
        ),
    ),
)
