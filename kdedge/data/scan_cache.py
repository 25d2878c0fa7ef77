"""Caches the scan of each readable image, so that unchanged files are decoded once.

An image is identified by its file's path, its position in the file, and the file's size, times of
change and inode. Unreadable images are not cached: they are few, and the cause may be temporary.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import PIL
from PIL import Image
from pydantic import Field, TypeAdapter

from kdedge import __version__
from kdedge.data.sources import ImageSource, InFiles, Location
from kdedge.errors import InUseError, ResourceError
from kdedge.files import FileStamp, write_atomic
from kdedge.locks import lock_file
from kdedge.messages import first_line
from kdedge.runtime.preprocess import MAX_ASPECT, MAX_PIXELS, decode_image, register_heif

MAX_FILES = 64
"""Largest number of files in a cache folder; the least recently used ones are removed."""

_LOCK_WAIT_S = 10.0

# An image's place -> stamp of its file, SHA-256, width and height
_IMAGES = TypeAdapter(
    dict[str, Annotated[str, Field(pattern=r"^(-?\d{1,20} ){4}[0-9a-f]{64} \d{1,9} \d{1,9}$")]]
)

log = logging.getLogger(__name__)


class ImageFacts(NamedTuple):
    """Facts of a readable image: SHA-256 of its bytes, in hex; width and height."""

    digest: str
    size_px: tuple[int, int]


class ScanCache:
    """Scanned images, in memory and in a folder, shared by sources and processes.

    Each folder of images has its own file in the cache. A file that is damaged, has another
    version, or cannot be written causes a new scan and no error.

    Args:
        folder: the cache's folder, created when needed; None keeps results in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}  # an image's place -> its file's stamp and its facts
        self._new: dict[str, str] = {}
        self._read: set[Path] = set()

    def open(self, source: ImageSource) -> None:
        """Reads the cached facts of a source's images, once per source."""
        file = self._file(source)
        if file is not None and file not in self._read:
            self._read.add(file)
            self._known = _read(file) | self._known
            with contextlib.suppress(OSError):
                os.utime(file)  # the time of use, see MAX_FILES

    def facts(self, source: ImageSource, i: int) -> ImageFacts:
        """Returns the cached facts of an image, or reads and decodes it.

        Many threads may call this at once.

        Raises:
            ImageError: the image cannot be read.
        """
        location = source.location(i) if isinstance(source, InFiles) else None
        stamp = location and _stamp(location)
        if location is None or stamp is None:
            return _examine(source, i)
        key = f"{location.position}:{location.column}:{location.path}"
        *known, digest, width, height = self._known.get(key, "").split() or ("", "0", "0")
        if known == [str(value) for value in stamp]:  # else the file is new or has changed
            return ImageFacts(digest, (int(width), int(height)))
        started_ns = time.time_ns()
        facts = _examine(source, i)
        if stamp.is_settled(started_ns):
            text = " ".join(map(str, (*stamp, facts.digest, *facts.size_px)))
            self._known[key] = self._new[key] = text
        return facts

    def save(self, source: ImageSource) -> None:
        """Adds newly scanned images to the source's file in the cache."""
        file = self._file(source)
        new = self._new
        self._new = {}
        if file is None or not new:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Without the lock, entries of another process could be lost
            with lock_file(file.parent / ".lock", wait_s=_LOCK_WAIT_S):
                contents = {"decoder": _decoder(), "images": {**_read(file), **new}}
                write_atomic(file, json.dumps(contents).encode())
                caches = file.parent.glob("*.json")
                for oldest in sorted(caches, key=lambda path: -path.stat().st_mtime)[MAX_FILES:]:
                    oldest.unlink(missing_ok=True)
        except (InUseError, ResourceError, OSError) as error:
            log.info(
                "The scan of the images is not cached, so the next use repeats it:"
                f" {first_line(error)}"
            )

    def _file(self, source: ImageSource) -> Path | None:
        """The cache file of a source, named by the innermost folder that holds all its images."""
        if self._folder is None or not isinstance(source, InFiles) or not source.items:
            return None
        places = {os.path.dirname(source.location(i).path) for i in range(len(source.items))}  # noqa: PTH120
        name = hashlib.sha256(os.fsencode(os.path.commonpath(places))).hexdigest()[:32]
        return self._folder / f"{name}.json"


def _examine(source: ImageSource, i: int) -> ImageFacts:
    data = source.read(i)
    return ImageFacts(hashlib.sha256(data).hexdigest(), decode_image(data).size)


def _stamp(location: Location) -> FileStamp | None:
    """A file's current stamp; None if the file is missing or was replaced after it was indexed."""
    try:
        stamp = FileStamp.of(os.stat(location.path))  # noqa: PTH116 - twice as fast as Path.stat
    except (OSError, ValueError):  # the name is too long or has a zero byte
        return None
    return stamp if location.stamp in (None, stamp) else None


def _decoder() -> list[object]:
    """The versions and limits that, besides its bytes, decide whether an image is readable."""
    limits = (MAX_PIXELS, MAX_ASPECT, Image.MAX_IMAGE_PIXELS)
    heif = register_heif()
    return [__version__, PIL.__version__, *limits, *([] if heif is None else [heif])]


def _read(file: Path) -> dict[str, str]:
    """Reads a cache file; empty if it is missing, damaged or of another version."""
    try:
        value = json.loads(file.read_bytes())
        if value["decoder"] == _decoder():
            return _IMAGES.validate_python(value["images"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.info(f"The cache {file} is ignored: {first_line(error)}")
    return {}
