"""Reads images from files, folders, videos or standard input; needs no torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from kdedge.errors import DataError

if TYPE_CHECKING:
    from kdedge.data.sources import FileSource
    from kdedge.inference.classify import ImageInput

_LOG = logging.getLogger(__name__)
_MOST_BYTES = 1 << 29  # of an image on standard input: no photo is larger


class _Labels(TypedDict):
    """How a source reads labels."""

    class_names: Sequence[str]
    labeled: bool


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        key: its name in results.
        name: file name to save it under.
        read: returns it or raises UnusableImage; reads an image file anew at each call.
        label: its class, as a position in the names that labels were read with; None without one.
    """

    key: str
    name: str
    read: Callable[[], ImageInput]
    label: int | None = None


@dataclass(frozen=True)
class Inputs:
    """The images to classify.

    Attributes:
        items: the images; frames are decoded one at a time.
        keys: all keys; None if there are frames, whose number is unknown.
    """

    items: Iterator[Item]
    keys: Sequence[str] | None

    @property
    def n_images(self) -> int | None:
        """Number of images; None if unknown."""
        return None if self.keys is None else len(self.keys)

    def without_first(self, n_images: int) -> Inputs:
        """Returns the inputs without the first images; only with all keys known."""
        assert self.keys is not None
        return replace(self, items=islice(self.items, n_images, None), keys=self.keys[n_images:])


AnyPath = str | Path | Iterable[str | Path]
"""A path, or several."""


def path_list(paths: Iterable[AnyPath]) -> tuple[str, ...]:
    """The paths of arguments, each of which is a path or a list of paths."""
    lists = [[one] if isinstance(one, str | Path) else one for one in paths]
    return tuple(str(path) for one in lists for path in one)


def open_inputs(
    paths: Sequence[str], *, every: int = 1, label_names: Sequence[str] | None = None
) -> Inputs:
    """Opens the images to classify; lists folders, shards and CSV lists at once.

    Args:
        paths: files and folders, or - alone for standard input.
        every: take the first and then every Nth frame of a video.
        label_names: the class names to read labels with: of a folder's subfolders, of a CSV list,
            and of a shard's cls members. None reads no labels.

    Raises:
        DataError: a file or a folder does not exist, or a label is none of the names.
        MissingPackage: a video is named and PyAV is not installed.
    """
    if tuple(paths) != ("-",):
        return _listed(paths, every, label_names)
    data = sys.stdin.buffer.read(_MOST_BYTES)
    found = [Item("stdin", "stdin.jpg", _giver(data))] if data else []
    return Inputs(iter(found), None)


def read_item(item: Item) -> ImageInput:
    """An item's image, or why it cannot be read."""
    from kdedge.runtime.preprocess import UnusableImage

    try:
        return item.read()
    except UnusableImage as error:
        return error


def _giver(image: ImageInput) -> Callable[[], ImageInput]:
    return lambda: image


def _listed(paths: Sequence[str], every: int, label_names: Sequence[str] | None) -> Inputs:
    """The images of files, folders and videos, in the order given."""
    from kdedge.data.sources import read_file
    from kdedge.runtime.video import import_pyav, is_video

    labels: _Labels = {"class_names": label_names or (), "labeled": label_names is not None}
    parts: list[Sequence[Item] | Iterator[Item]] = []
    has_video = False
    for name in paths:
        path = Path(name)
        try:
            is_folder, is_there = path.is_dir(), path.exists()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DataError(
                f"{name} cannot be read: {reason}.\n  Name a file or folder that you may read."
            ) from error
        if is_folder:
            parts.append(_folder(path, labels))
        elif not is_there:
            raise DataError(f"{name} does not exist.\n  Name an image, or a folder of images.")
        elif path.suffix == ".tar":
            parts.append(_shard(path, labels))
        elif path.suffix.lower() == ".csv":
            parts.append(_list(path, labels))
        elif is_video(path):
            import_pyav()  # fail before the model is loaded
            has_video = True
            parts.append(_frames(path, every))
        else:
            parts.append([Item(name, path.name, partial(read_file, path.absolute()))])
    items = (item for part in parts for item in part)
    if has_video:
        return Inputs(items, None)
    listed = list(items)
    return Inputs(iter(listed), [item.key for item in listed])


def _folder(path: Path, labels: _Labels) -> list[Item]:
    """The images of a folder; warns of videos and pictures that are skipped."""
    from kdedge.data.sources.folder import has_pictures, left_out_text, open_source
    from kdedge.runtime.video import is_video

    source = open_source(path, **labels)
    has_videos = any(is_video(Path(f"_{kind}")) for kind in source.left_out)
    if has_videos or has_pictures(source.left_out):
        remedy = "\n  To classify a video, give its path." if has_videos else ""
        _LOG.warning("%s: skipped files: %s.%s", path, left_out_text(source.left_out), remedy)
    return _items_of_files(source, path)


def _list(path: Path, labels: _Labels) -> list[Item]:
    """The images of a CSV list."""
    from kdedge.data.sources.list import open_source

    return _items_of_files(open_source(path, **labels), path.parent)


def _items_of_files(source: FileSource, above: Path) -> list[Item]:
    from kdedge.data.sources import read_file

    return [
        Item(
            str(above / item.key),
            item.key.replace("/", "_"),
            partial(read_file, source.path(i)),
            item.label,
        )
        for i, item in enumerate(source.items)
    ]


def _shard(path: Path, labels: _Labels) -> list[Item]:
    """The images of a WebDataset shard."""
    from kdedge.data.sources.webdataset import open_source

    source = open_source(str(path.absolute()), **labels)
    return [
        Item(
            str(path.parent / item.key),
            item.key.replace("/", "_"),
            partial(source.read, i),
            item.label,
        )
        for i, item in enumerate(source.items)
    ]


def _frames(path: Path, every: int) -> Iterator[Item]:
    """A video's frames; at damage, a last item whose `read` raises the reason."""
    from kdedge.runtime.preprocess import UnusableImage
    from kdedge.runtime.video import frames_of_video

    try:
        for number, seconds, image in frames_of_video(path, every=every):
            time = "" if seconds is None else f"@{seconds:.3f}s"
            name = f"{path.stem}-{number:06d}.jpg"
            yield Item(f"{path}:{number}{time}", name, _giver(image))
    except UnusableImage as error:
        yield Item(str(path), path.name, _giver(error))
