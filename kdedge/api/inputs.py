"""Images, folders, videos and standard input as one stream of images to classify."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdedge.data.sources import ImageSource, Item, csv_list, folder, read_all, read_file
from kdedge.errors import DataError, RecipeError, os_reason
from kdedge.files import home_path
from kdedge.inference.classify import ImageInput
from kdedge.runtime.preprocess import ImageError
from kdedge.runtime.video import PYAV, frames_of_video, is_video

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputImage:
    """One image to classify.

    Attributes:
        key: name of the image in results.
        name: file name to save it under.
        image: the image, or a function that reads its file anew at each call.
        label: position of its class in the `label_names` of `open_inputs`; None if it has no label.
    """

    key: str
    name: str
    image: ImageInput
    label: int | None = None


class InputSource:
    """Images to classify, as a source; they are read from files.

    Attributes:
        items: the images' keys and labels.
    """

    def __init__(self, inputs: Sequence[InputImage]) -> None:
        self.items = [Item(image.key, image.label) for image in inputs]
        self._reads: list[Any] = [image.image for image in inputs]

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            ImageError: the file cannot be read.
        """
        data: bytes = self._reads[i]()
        return data


InputImages = list[InputImage] | Iterator[InputImage]
"""Images to classify; an iterator if there is a video, whose number of frames is unknown."""


AnyPath = str | Path | Iterable[str | Path]
"""A path, or several."""


def path_list(arguments: Iterable[AnyPath], *, takes_stdin: bool = True) -> tuple[str, ...]:
    """The paths of arguments, each of which is a path or a list of paths.

    Raises:
        RecipeError: there is no path, one is empty, or - (standard input) is not alone, has no
            image or is not taken.
    """
    lists = [[given] if isinstance(given, str | Path) else given for given in arguments]
    paths = tuple(str(path) for listed in lists for path in listed)
    if not paths:
        others = ", a folder, or - for standard input" if takes_stdin else " or a folder"
        raise RecipeError(f"No path is given.\n  Name images{others}.")
    if "" in paths:
        raise RecipeError("A path is empty.\n  Name an image or a folder; . is the current folder.")
    if "-" in paths and not takes_stdin:
        raise RecipeError("Standard input is not taken here.\n  Name images or a folder.")
    if "-" in paths and len(paths) > 1:
        raise RecipeError("- (standard input) cannot be combined with other paths.")
    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        raise RecipeError("Standard input is a terminal.\n  Pipe an image into it.")
    return paths


def open_inputs(
    paths: Sequence[str],
    *,
    every: int = 1,
    label_names: Sequence[str] | None = None,
    n_positions: int | None = None,
) -> InputImages:
    """Opens the images to classify, in the order given; lists folders, shards and CSV lists.

    Args:
        paths: files and folders, or - alone for standard input.
        every: take the first and then every Nth frame of a video.
        label_names: class names of the labels, which are a folder's subfolders, a column of a CSV
            list or a shard's cls members; None reads no labels.
        n_positions: number of the names, the first ones, that a label can give as a number; None
            for all.

    Raises:
        DataError: a file or a folder does not exist, or a label is not a class name.
        MissingPackage: a video is named and PyAV is not installed.
    """
    if tuple(paths) == ("-",):
        try:
            image: ImageInput = read_all(sys.stdin.buffer)
        except ImageError as error:
            image = error
        return iter([InputImage("stdin", "stdin.jpg", image)] if image else [])
    labels: dict[str, Any] = {"class_names": label_names or (), "labeled": label_names is not None}
    parts: list[InputImages] = []
    for name in paths:
        path = home_path(name)
        try:
            is_folder = path.is_dir()
            is_there = path.exists()
        except OSError as error:
            raise DataError(
                f"{name} cannot be read: {os_reason(error)}.\n"
                "  Name a file or folder that you may read."
            ) from error
        if is_folder:
            source = folder.open_source(path, **labels)
            has_videos = any(is_video(Path(f"_{kind}")) for kind in source.left_out)
            if has_videos or folder.has_images(source.left_out):
                skipped = folder.left_out_text(source.left_out)
                remedy = "\n  To classify a video, give its path." if has_videos else ""
                log.warning(f"{path}: skipped files: {skipped}.{remedy}")
            parts.append(_source_images(source, path))
        elif not is_there:
            raise DataError(f"{name} does not exist.\n  Name an image, or a folder of images.")
        elif not path.is_file():
            raise DataError(
                f"{name} is a device, pipe or socket, not a file.\n"
                "  Name an image, a folder of images, or - for standard input."
            )
        elif path.suffix.lower() == ".tar":
            from kdedge.data.sources import webdataset  # only needed for shards

            shard = webdataset.open_source(str(path.absolute()), **labels, n_positions=n_positions)
            parts.append(_source_images(shard, path.parent, suffix=".jpg"))  # keys have none
        elif path.suffix.lower() == ".csv":
            listed = csv_list.open_source(path, **labels, n_positions=n_positions)
            parts.append(_source_images(listed, path.parent))
        elif is_video(path):
            PYAV.load()  # fail before the model is loaded
            parts.append(_frames(path, every))
        else:
            parts.append([InputImage(name, path.name, partial(read_file, path.absolute()))])
    items = (item for part in parts for item in part)
    return list(items) if all(isinstance(part, list) for part in parts) else items


def _source_images(source: ImageSource, parent: Path, suffix: str = "") -> list[InputImage]:
    names = [item.key.replace("/", "_") + suffix for item in source.items]
    return [
        InputImage(str(parent / item.key), name, partial(source.read, i), item.label)
        for i, (item, name) in enumerate(zip(source.items, names, strict=True))
    ]


def _frames(path: Path, every: int) -> Iterator[InputImage]:
    """Yields a video's frames; if the video is damaged, the last item has the reason."""
    try:
        for number, seconds, image in frames_of_video(path, every=every):
            time = "" if seconds is None else f"@{seconds:.3f}s"
            yield InputImage(f"{path}:{number}{time}", f"{path.stem}-{number:06d}.jpg", image)
    except ImageError as error:
        yield InputImage(str(path), path.name, error)
