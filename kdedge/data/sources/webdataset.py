"""Tar shards in WebDataset's layout: files of one sample share a base name and are adjacent.

The webdataset package's own functions assign members to samples. The package only streams, so
shards are indexed once by their headers and then read by offset. Nothing is extracted, and names
inside a shard are never used as paths.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kdedge.data.sources import (
    IMAGE_EXTENSIONS,
    MAX_FILE_BYTES,
    Item,
    LabelIndex,
    Location,
    names_of,
)
from kdedge.errors import DataError, MissingPackage, os_reason
from kdedge.files import FileStamp, printable
from kdedge.runtime.preprocess import UnusableImage, more_extensions

_MAX_SHARDS = 100_000
"""Largest number of shards of a pattern; more are taken for a typing error."""

_MAX_LABEL_BYTES = 1024
_MAX_OPEN_SHARDS = 128
_BLOCK = 512

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

# Members that WebDataset's own reader leaves out (tariterators.tar_file_iterator).
_META = re.compile(r"__[^/]*__($|/)")


class _Place(NamedTuple):
    """The place of a member's bytes."""

    shard: int
    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class _Shard:
    """A shard as it was indexed."""

    path: Path
    name: str
    stamp: FileStamp


class WebDatasetSource:
    """Images in tar shards, in the order of the shards and of the members in them.

    Attributes:
        items: one per image; the key is `shard.tar/base name`.
    """

    def __init__(
        self, shards: Sequence[_Shard], places: Sequence[_Place], items: Sequence[Item]
    ) -> None:
        self.items = tuple(items)
        self._shards = tuple(shards)
        self._places = tuple(places)
        self._open_here()

    def _open_here(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the open files: each process opens its own."""
        return {"items": self.items, "_shards": self._shards, "_places": self._places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_here()

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            UnusableImage: the shard cannot be read.
            DataError: the shard has changed since it was indexed.
        """
        place = self._places[i]
        try:
            descriptor, is_kept = self._descriptor(place.shard)
            try:
                data = _read_at(descriptor, place.offset, place.size)
            finally:
                if not is_kept:
                    os.close(descriptor)
        except OSError as error:
            path = self._shards[place.shard].path
            raise UnusableImage(f"{path} cannot be read: {os_reason(error)}") from error
        if len(data) != place.size:
            raise _changed(self._shards[place.shard])
        return data

    def location(self, i: int) -> Location:
        """Returns image i's shard and its offset there."""
        place = self._places[i]
        shard = self._shards[place.shard]
        return Location(str(shard.path.absolute()), place.offset, shard.stamp)

    def _descriptor(self, shard: int) -> tuple[int, bool]:
        """Returns an open file, and whether it stays open, as only the first 128 shards do."""
        with self._lock:
            if shard in self._descriptors:
                return self._descriptors[shard], True
            known = self._shards[shard]
            descriptor = os.open(known.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            if FileStamp.of(os.fstat(descriptor))[:2] != known.stamp[:2]:
                os.close(descriptor)
                raise _changed(known)
            if len(self._descriptors) >= _MAX_OPEN_SHARDS:
                return descriptor, False
            self._descriptors[shard] = descriptor
            return descriptor, True


def _changed(shard: _Shard) -> DataError:
    return DataError(
        f"{shard.path} has changed since its index was made.\n"
        "  Start again when nothing writes to the shards any longer."
    )


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Reads without moving the file's position, which other threads share."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def open_source(pattern: str, *, class_names: Sequence[str], labeled: bool) -> WebDatasetSource:
    """Indexes local shards.

    Args:
        pattern: path of a shard, or of many: `shards-{000..063}.tar`.
        class_names: in class-list order; used if `labeled`.
        labeled: read labels from `cls` members: a number is a position in the class list, any
            other text a class name. A sample without one has no label.

    Raises:
        DataError: a shard is missing, remote, compressed or damaged; a sample does not have exactly
            one image; a label is invalid; or no sample has one although labels are needed.
        MissingPackage: webdataset is not installed.
    """
    labels = LabelIndex(class_names)
    shards: list[_Shard] = []
    places: list[_Place] = []
    items: list[Item] = []
    keys: set[str] = set()
    for shard, samples in _index(pattern):
        shards.append(shard)
        for sample in samples:
            key = f"{shard.name}/{printable(sample['__key__'])}"
            if key in keys:
                raise DataError(
                    f"{shard.path}: sample {sample['__key__']} appears twice.\n"
                    "  Put the files of one sample next to each other, and use unique base names."
                )
            keys.add(key)
            places.append(_image_of(sample, shard.path))
            items.append(Item(key, _label_of(sample, shard.path, labels) if labeled else None))
    if not items:
        raise DataError(
            f"{pattern}: {len(shards)} shards without any image.\n"
            "  Write shards with jpg, png or webp members."
        )
    if labeled and all(item.label is None for item in items):
        raise DataError(
            f"{pattern}: no sample has a cls member, and labels are needed.\n"
            "  Add them, or use the shards as unlabeled data."
        )
    return WebDatasetSource(shards, places, items)


def label_texts(pattern: str) -> list[str]:
    """Returns the text of each sample's `cls` member; "" without one.

    Raises:
        DataError: a shard is missing, remote, compressed or damaged.
        MissingPackage: webdataset is not installed.
    """
    return [
        _label_text(sample, shard.path) or ""
        for shard, samples in _index(pattern)
        for sample in samples
    ]


def _index(pattern: str) -> Iterator[tuple[_Shard, Iterator[dict[str, Any]]]]:
    """Yields the shards, each with its samples: extension -> place."""
    group_by_keys, expand_urls = _webdataset_functions()
    paths = _shard_paths(pattern, expand_urls)
    for number, (path, name) in enumerate(zip(paths, names_of(paths), strict=True)):
        shard, members = _index_shard(path, name, number)
        rows = ({"fname": m.name, "data": m, "__url__": shard.name} for m in members)
        yield shard, _samples(rows, path, group_by_keys)


def _webdataset_functions() -> tuple[Any, Any]:
    # Imported late: webdataset loads torch if it is installed.
    try:
        from webdataset.shardlists import expand_urls
        from webdataset.tariterators import group_by_keys
    except ImportError as error:
        raise MissingPackage(
            "webdataset", extra="train", purpose="Reading WebDataset shards"
        ) from error
    return group_by_keys, expand_urls


def _shard_paths(pattern: str, expand_urls: Any) -> list[Path]:
    """Expands a pattern and checks that every shard is a local file."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", pattern) and not pattern.lower().startswith("file:"):
        raise DataError(
            f"{pattern}: shards are read from local files only.\n"
            "  Download them first and name the folder they are in."
        )
    n_shards = 1
    for first, last in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})[.}]", pattern):
        n_shards *= abs(int(last) - int(first)) + 1
    if n_shards > _MAX_SHARDS:
        raise DataError(
            f"{pattern} names {n_shards} shards, more than {_MAX_SHARDS}.\n  Check its ranges."
        )
    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise DataError(
            f"{pattern} is not a shard pattern: {error}.\n  Write it as shards-{{000..063}}.tar."
        ) from error
    paths = [Path(re.sub(r"^file:(//)?", "", name)).expanduser() for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} does not exist ({len(missing)} of {len(paths)} shards are missing).\n"
            f"  The pattern is {pattern}."
        )
    twice = [path for path, n_times in Counter(paths).items() if n_times > 1]
    if twice:
        raise DataError(f"shard {twice[0]} is listed twice.\n  List every shard once.")
    return paths


def _index_shard(path: Path, name: str, number: int) -> tuple[_Shard, list[_Place]]:
    """Lists a shard's files from its headers."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            reader: Any = _TarReader(file)
            with tarfile.open(fileobj=reader, mode="r:") as tar:
                members = [
                    _Place(number, m.offset_data, m.size, m.name)
                    for m in _regular_members(tar, path, status.st_size)
                ]
                end = tar.offset
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise DataError(
                    f"{path} is damaged or cut short at byte {end}: it has neither a tar"
                    " header nor the end mark there.\n  Copy or download the shard again."
                )
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise DataError(_not_tar(path, error)) from error
    return _Shard(path, name, FileStamp.of(status)), members


def _regular_members(tar: tarfile.TarFile, path: Path, n_bytes: int) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        if not member.isreg() or _META.match(member.name):
            continue
        if member.issparse():
            raise DataError(
                f"{path}: {member.name} is stored as a sparse file, which cannot be read by"
                " offset.\n  Write the shard without sparse members."
            )
        if member.size < 0 or member.offset_data + member.size > n_bytes:
            raise DataError(
                f"{path}: {member.name} claims {member.size} bytes, but the shard ends before.\n"
                "  Copy or download the shard again."
            )
        yield member


def _not_tar(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError:
        head = b""
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            return (
                f"{path} is compressed ({kind}), but kdedge reads shards by offset.\n"
                "  Decompress it to a plain .tar; images in it are compressed already."
            )
    return f"{path} is not a readable tar file: {str(error).rstrip('.')}."


def _samples(rows: Iterator[dict[str, Any]], path: Path, group_by_keys: Any) -> Iterator[Any]:
    try:
        yield from group_by_keys(rows)
    except ValueError as error:
        raise DataError(
            f"{path}: {error.args[0]}.\n  Every file of a sample needs its own extension."
        ) from error


def _image_of(sample: dict[str, Any], path: Path) -> _Place:
    """Finds a sample's one image."""
    images = [sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample]
    # Other kinds count only without a usual one: a sample may also hold a preview or a mask
    images = images or [sample[kind] for kind in sorted(more_extensions()) if kind in sample]
    if len(images) != 1:
        members = [value.name for value in sample.values() if isinstance(value, _Place)]
        raise DataError(
            f"{path}: sample {sample['__key__']} has {len(images)} images, expected one"
            f" ({', '.join(IMAGE_EXTENSIONS)}).\n  It consists of {', '.join(members)}."
        )
    place: _Place = images[0]
    if place.size > MAX_FILE_BYTES:
        raise DataError(
            f"{path}: {place.name} has {place.size} bytes, more than {MAX_FILE_BYTES >> 20} MiB,"
            " too large for a photo."
        )
    return place


def _label_of(sample: dict[str, Any], path: Path, labels: LabelIndex) -> int | None:
    """Reads a sample's label; None if it has none."""
    text = _label_text(sample, path)
    if text is None:
        return None
    label = labels.find(text)
    # As in WebDataset; in lists and tables, a number that is a class name means that class
    if text.isascii() and text.isdecimal() and len(text) < 10:
        label = int(text) if int(text) < len(labels.class_names) else None
    if label is None:
        raise DataError(
            f'{path}: {sample["cls"].name} holds "{text[:80]}"{labels.nearest(text[:80])}, expected'
            f" a position from 0 to {len(labels.class_names) - 1} or a class name.\n"
            "  Use the class list that the shards were made with."
        )
    return label


def _label_text(sample: dict[str, Any], path: Path) -> str | None:
    place = sample.get("cls")
    if place is None:
        return None
    with path.open("rb") as file:
        file.seek(place.offset)
        data = file.read(min(place.size, _MAX_LABEL_BYTES))
    return data.decode("utf-8", "backslashreplace").strip()


_MAX_HEADER_BYTES = 1 << 20
"""A header may claim terabytes, and tarfile would read them in one call."""


class _TarReader:
    """A tar file with a limit on each single read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)
