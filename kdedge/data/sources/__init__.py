"""Image sources, one file per kind: ordered lists of images with labels, readable in any order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

from kdedge.config.fields import class_key
from kdedge.errors import DataError, os_reason
from kdedge.files import FileStamp, open_regular, printable
from kdedge.messages import nearest
from kdedge.runtime.preprocess import ImageError

IMAGE_EXTENSIONS: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff")
"""Extensions of image files that every build of Pillow reads, in lower case and without the dot.

Folders and shards may hold more kinds: see `runtime.preprocess.more_extensions`.
"""

MAX_FILE_BYTES = 1 << 29
"""Larger files (512 MiB) are not photos and are not read into memory."""


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        key: its name in messages and records; unique in its source.
        label: its class as a position in the class list; None if there are no labels or they are
            not used.
    """

    key: str
    label: int | None


class ImageSource(Protocol):
    """An ordered list of images.

    It can be pickled (loader workers get a copy) and read from many threads at once.
    """

    @property
    def items(self) -> Sequence[Item]:
        """All images, in an order that does not depend on the file system's."""
        ...

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            ImageError: the bytes cannot be read.
        """
        ...


class Location(NamedTuple):
    """Where the bytes of an image are.

    Attributes:
        path: the file's absolute path.
        position: position of the image in a file with several, such as an offset or a row.
        stamp: stamp of the file when it was indexed; None if the file is opened for each image.
        column: column of the image, in a file with several images per row.
    """

    path: str
    position: int = 0
    stamp: FileStamp | None = None
    column: str = ""


@runtime_checkable
class InFiles(Protocol):
    """A source whose images are in files, so that scans of unchanged files can be cached."""

    def location(self, i: int) -> Location:
        """Returns the place of image i's bytes."""
        ...


class WithoutLabels:
    """A source without its labels.

    Attributes:
        items: the items of the source, without labels.
    """

    def __init__(self, source: ImageSource) -> None:
        self.items = tuple(Item(item.key, None) for item in source.items)
        self._source = source

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            ImageError: the bytes cannot be read.
        """
        return self._source.read(i)


class Joined:
    """Two sources in a row; an image that is in both occurs twice, under the same key.

    Attributes:
        items: the items of the first source, then of the second.
    """

    def __init__(self, first: ImageSource, second: ImageSource) -> None:
        self.items = (*first.items, *second.items)
        self._first = first
        self._second = second

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            ImageError: the bytes cannot be read.
        """
        n_first = len(self._first.items)
        return self._first.read(i) if i < n_first else self._second.read(i - n_first)


class FileSource:
    """A source of image files.

    Attributes:
        items: one item per file.
        left_out: kind -> number of a folder's files that are not images.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        items: Sequence[Item],
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self.items = tuple(items)
        self.left_out = dict(left_out or {})
        self._folder = str(folder.absolute())
        self._names = tuple(names)

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            ImageError: the file cannot be read.
        """
        return read_file(Path(self.location(i).path))

    def location(self, i: int) -> Location:
        """Returns image i's file, which may not exist."""
        return Location(os.path.join(self._folder, self._names[i]))  # noqa: PTH118 - 3 times faster


def read_file(path: Path) -> bytes:
    """Reads an image file.

    Raises:
        ImageError: the file is missing, may not be read, or is too large to be a photo.
    """
    try:
        with open_regular(path) as file:
            return read_all(file)
    except OSError as error:
        raise ImageError(f"cannot be read: {os_reason(error)}") from error


def read_all(file: BinaryIO) -> bytes:
    """Reads an image from an open file or from standard input.

    Raises:
        ImageError: there are too many bytes for a photo.
    """
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB, too large for a photo")
    return data


def is_file(path: str | Path) -> bool:
    """Whether a file exists; False if that cannot be determined."""
    return os.path.isfile(path)  # noqa: PTH113 - raises nothing


def relative_names(paths: Sequence[Path]) -> list[str]:
    """Returns printable paths of files, relative to the innermost folder that holds all of them."""
    absolute = [path.absolute() for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    return [printable(path.relative_to(common).as_posix()) for path in absolute]


class LabelIndex:
    """Finds class names by exact text, or else ignoring case, blanks and underscores.

    Args:
        class_names: in class-list order.
        n_positions: number of classes, the first ones, that a number can name; None for all.
    """

    def __init__(self, class_names: Sequence[str], n_positions: int | None = None) -> None:
        self.class_names = tuple(class_names)
        self._n_positions = len(self.class_names) if n_positions is None else n_positions
        self._exact = {name: i for i, name in enumerate(self.class_names)}
        self._keys = {class_key(name): i for i, name in enumerate(self.class_names)}

    def find(self, text: str) -> int | None:
        """Returns the position of a class name; None if unknown."""
        position = self._exact.get(text)
        return self._keys.get(class_key(text)) if position is None else position

    def position(self, text: str) -> int | None:
        """Returns the number in a text if it is a position in the list; None otherwise."""
        is_position = text.isdecimal() and len(text) < 10 and int(text) < self._n_positions
        return int(text) if is_position else None

    def read(self, text: str, where: str, *, numbers: bool = True) -> int | None:
        """Returns the position of a class name, or of a number that is a position in the list.

        Args:
            text: the source's label; for "" the result is None.
            where: the file and the row, for the message.
            numbers: also accept positions.

        Raises:
            DataError: the text is neither a class name nor an accepted position.
        """
        if not text:
            return None
        position = self.find(text)
        if position is None and numbers:
            position = self.position(text)
        if position is None:
            choice = f", or a position from 0 to {self._n_positions - 1}" if numbers else ""
            raise DataError(
                f'{where}: "{text}" is not a class name{self.nearest(text)}.\n'
                f"  Expected one of the {len(self.class_names)} class names{choice}."
            )
        return position

    def nearest(self, text: str) -> str:
        """Returns ` (nearest: "x")`; an empty text if no class name is similar."""
        near = nearest(class_key(text), self._keys)
        return "" if near is None else f' (nearest: "{self.class_names[self._keys[near]]}")'
