"""Common parts of ImageNet and its variants: class names by WordNet id, folders of images.

Names come from CoOp's `classnames.txt` in the set's folder or ImageNet's, if it exists. Otherwise
they come from open_clip's IMAGENET_CLASSNAMES, a later revision of the same list that differs in
some names (both are CLIP's, github.com/openai/CLIP).

CLIP's list has "missile" and "sunglasses" twice. kdedge identifies classes by name, so one of each
pair gets WordNet's name here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks._annotations import folders_in, images_in, read_lines, unexpected
from kdedge.data.benchmarks._benchmark import Benchmark
from kdedge.data.benchmarks._coop_split import Split, open_part
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import describe, google_drive, is_there, require
from kdedge.data.sources import FileSource
from kdedge.errors import DataError, MissingPackage

log = logging.getLogger(__name__)

CLASS_NAMES = "classnames.txt"
CLASS_NAMES_DOWNLOAD = Download(
    name=CLASS_NAMES,
    urls=(google_drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"),),
    gives=CLASS_NAMES,
)
"""CoOp's DATASETS.md."""

LICENSE_OF_VARIANTS = (
    "MIT license for the collection; the pictures belong to their makers: non-commercial research,"
    " as with ImageNet"
)

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
        there = [images for images in folders if is_there(root / self.folder / images)]
        if not there:
            self._require(root, folders)
        return tuple(self._names(root, there[0]).values())

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> FileSource:
        """See `Benchmark.open_source`: sorted by path."""
        if part not in self.images:
            raise DataError(
                f"{part} is not a part of {self.name}; expected one of {', '.join(self.images)}."
            )
        self._require(root, [self.images[part]])
        names = self._names(root, self.images[part])
        folder = root / self.folder / self.images[part]
        rows = tuple(
            (f"{class_folder}/{file}", label)
            for label, class_folder in enumerate(names)
            for file in images_in(folder / class_folder)
        )
        n_published = self.n_images.get(part, self.n_images["test"])
        if len(rows) != n_published:
            raise DataError(
                f"{folder} has {len(rows)} images, the published set has {n_published}.\n"
                "  Get the set again; it is used only when complete."
            )
        split = Split(tuple(names.values()), {part: rows})
        return open_part(folder, split, part=part, class_names=class_names, labeled=labeled)

    def _require(self, root: Path, images: Iterable[str]) -> None:
        require(self.name, root / self.folder, images, self.downloads)

    def _names(self, root: Path, images: str) -> dict[str, str]:
        """Class folder -> class name, in label order."""
        folder = root / self.folder / images
        folders = folders_in(folder)
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
        there = set(folders)
        return {key: name for key, name in by_folder.items() if key in there}


def _read_names(root: Path, folder: str) -> dict[str, str]:
    """WordNet id -> class name, of all 1000 and in their order, no name twice."""
    files = [root / place / CLASS_NAMES for place in (folder, _IMAGENET)]
    file = next((file for file in files if is_there(file)), None)
    names = _names_of_open_clip(files[0]) if file is None else _names_of_file(file)
    counts = Counter(names.values())
    for wordnet_id, name in _WORDNET_NAMES.items():
        if counts[names.get(wordnet_id, "")] > 1:
            names[wordnet_id] = name
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else f"{name} ({key})" for key, name in names.items()}


def _names_of_file(file: Path) -> dict[str, str]:
    rows = [line.partition(" ") for line in read_lines(file)]
    odd = next((row for row in rows if not row[2]), None)
    if odd is not None:
        raise unexpected(file, f"the line {odd[0]}", "a WordNet id and a class name")
    return {wordnet_id: name for wordnet_id, _, name in rows}


def _names_of_open_clip(file: Path) -> dict[str, str]:
    try:
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise MissingPackage(
            "open_clip_torch", extra="train", purpose=f"ImageNet without {CLASS_NAMES}"
        ) from error
    log.warning(
        "%s is missing: ImageNet's class names are open_clip's, some of which differ from"
        " CoOp's.\n  To get it: %s.",
        file,
        describe(CLASS_NAMES_DOWNLOAD),
    )
    wordnet_ids = ImageNetInfo("imagenet-1k").label_names()
    return dict(zip(wordnet_ids, IMAGENET_CLASSNAMES, strict=True))
