"""ImageNet and its variants: class names by WordNet id, folders of images.

Names come from CoOp's `classnames.txt`, if it is in the set's folder or in ImageNet's. Otherwise
they come from open_clip's IMAGENET_CLASSNAMES, a later revision of the same list that differs in
some names (both are CLIP's, github.com/openai/CLIP).

CLIP's list has "missile" and "sunglasses" twice. kdedge identifies classes by name, so one of each
pair gets WordNet's name here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.sources import IMAGE_EXTENSIONS
from kdedge.errors import DataError, os_reason
from kdedge.packages import need
from kdedge.paper.benchmark_sets._benchmark import (
    Benchmark,
    ImageList,
    exists,
    read_lines,
    unexpected,
)

log = logging.getLogger(__name__)

_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
_WORDNET_NAMES = {"n04008634": "projectile", "n04355933": "sunglass"}


@dataclass(frozen=True)
class FolderSet(Benchmark):
    """ImageNet or a variant of it; a variant uses its test images for training, too.

    Attributes:
        images: part -> folder of class folders, below the set's folder.
        is_numbered: class folders are named by position in the list of names, not by WordNet id.
    """

    images: Mapping[str, str]
    is_numbered: bool = False

    def class_names(self, root: Path) -> tuple[str, ...]:
        """Names of the classes that have a folder, sorted by WordNet id."""
        folders = dict.fromkeys(self.images.values())
        present = [images for images in folders if exists(root / self.folder / images)]
        if not present:
            self.require(root, folders)
        return tuple(self._names(root, present[0]).values())

    def list_images(self, root: Path, part: str) -> ImageList:
        """The images of a part, sorted by path."""
        if part not in self.images:
            raise DataError(
                f"{part} is not a part of {self.name}; expected one of {', '.join(self.images)}."
            )
        self.require(root, [self.images[part]])
        names = self._names(root, self.images[part])
        folder = root / self.folder / self.images[part]
        rows = [
            (f"{class_folder}/{file}", label)
            for label, class_folder in enumerate(names)
            for file in _names_in(folder / class_folder)
            if file.lower().endswith(_SUFFIXES)
        ]
        n_published = self.n_images.get(part, self.n_images["test"])
        if len(rows) != n_published:
            raise DataError(
                f"{folder} has {len(rows)} images, the published set has {n_published}.\n"
                "  Get the set again; it is used only when complete."
            )
        return ImageList(folder, tuple(names.values()), rows)

    def _names(self, root: Path, images: str) -> dict[str, str]:
        """Class folder -> class name, in label order."""
        folder = root / self.folder / images
        folders = {name for name in _names_in(folder) if (folder / name).is_dir()}
        if len(folders) != self.n_classes:
            raise DataError(
                f"{folder} has {len(folders)} class folders, the published set"
                f" has {self.n_classes}.\n  Put the images of each class into its own folder."
            )
        names = self._names_by_id(root)
        what = "a WordNet id of ImageNet's"
        if self.is_numbered:
            names = {str(number): name for number, name in enumerate(names.values())}
            what = "a number from 0"
        for unknown in sorted(folders - names.keys())[:1]:
            raise unexpected(folder, f"a folder {unknown}", what)
        return {key: name for key, name in names.items() if key in folders}

    def _names_by_id(self, root: Path) -> dict[str, str]:
        """WordNet id -> class name, for all 1000 classes in their order; names are distinct."""
        files = [root / folder / "classnames.txt" for folder in (self.folder, "imagenet")]
        file = next(filter(exists, files), None)
        if file is not None:
            rows = [line.partition(" ") for line in read_lines(file)]
            for wordnet_id, _, name in rows:
                if not name:
                    what = "a WordNet id and a class name"
                    raise unexpected(file, f"the line {wordnet_id}", what)
            names = {wordnet_id: name for wordnet_id, _, name in rows}
        else:
            need("open_clip", "timm", purpose="ImageNet without classnames.txt")
            from open_clip import IMAGENET_CLASSNAMES
            from timm.data import ImageNetInfo

            log.warning(
                f"{files[0]} is missing: ImageNet's class names are open_clip's, some of which"
                " differ from CoOp's.\n"
                f"  To get it: {self.downloads[-1].by_hand}."
            )
            wordnet_ids = ImageNetInfo("imagenet-1k").label_names()
            names = dict(zip(wordnet_ids, IMAGENET_CLASSNAMES, strict=True))
        counts = Counter(names.values())
        own = {key: name for key, name in _WORDNET_NAMES.items() if counts[names.get(key, "")] > 1}
        return names | own


def _names_in(folder: Path) -> list[str]:
    """The sorted names in a folder, without hidden files."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {os_reason(error)}.\n  Get the set's images again."
        ) from error
