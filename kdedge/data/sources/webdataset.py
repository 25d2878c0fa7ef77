"""Tar shards in WebDataset's layout: files of one sample share a base name and are adjacent.

The webdataset package's own functions assign members to samples. The package only streams, so
shards are indexed once by their headers and then read by offset. Nothing is extracted, and names
inside a shard are never used as paths.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kdedge.data.sources import (
    IMAGE_EXTENSIONS,
    MAX_FILE_BYTES,
    Item,
    LabelIndex,
    Location,
    relative_names,
)
from kdedge.errors import DataError, os_reason
from kdedge.files import FileStamp, home_path, open_regular, printable
from kdedge.packages import need
from kdedge.runtime.preprocess import ImageError, more_extensions

_MAX_LABEL_BYTES = 1024
_BLOCK = 512

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

# Members that WebDataset's own reader leaves out (tariterators.tar_file_iterator).
_META = re.compile(r"__[^/]*__($|/)")


class _Member(NamedTuple):
    """A file in a shard."""

    name: str
    size: int
    location: Location


class WebDatasetSource:
    """A source of images in tar shards, in the order of the shards and of their members.

    Attributes:
        items: one item per image; the key is `shard.tar/base name`.
    """

    def __init__(self, members: Sequence[_Member], items: Sequence[Item]) -> None:
        self.items = tuple(items)
        self._places = tuple((member.size, member.location) for member in members)

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            ImageError: the shard cannot be read.
            DataError: the shard has changed since it was indexed.
        """
        size, (path, offset, stamp, _) = self._places[i]
        try:
            with Path(path).open("rb") as file:
                is_same = stamp and stamp[:2] == FileStamp.of(os.fstat(file.fileno()))[:2]
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {os_reason(error)}") from error
        if not is_same or len(data) != size:
            raise DataError(
                f"{path} has changed since its index was made.\n"
                "  Start again when nothing writes to the shards any longer."
            )
        return data

    def location(self, i: int) -> Location:
        """Returns image i's shard and its offset there."""
        return self._places[i][1]


def open_source(
    pattern: str, *, class_names: Sequence[str], labeled: bool, n_positions: int | None = None
) -> WebDatasetSource:
    """Indexes local shards.

    Args:
        pattern: path of a shard, or a pattern of several: `shards-{000..063}.tar`.
        class_names: in class-list order; used if `labeled`.
        labeled: read labels from `cls` members: a number is a position in the class list, any
            other text a class name. A sample without this file has no label.
        n_positions: as for `LabelIndex`.

    Raises:
        DataError: a shard is missing, remote, compressed or damaged; a sample does not have exactly
            one image; a label is invalid; or no sample has a label although labels are needed.
        MissingPackage: webdataset is not installed.
    """
    labels = LabelIndex(class_names, n_positions)
    members: list[_Member] = []
    items: list[Item] = []
    keys: set[str] = set()
    for sample in _samples(pattern):
        key = sample["__key__"]
        path = sample["__url__"]
        if key in keys:
            raise DataError(
                f"{path}: sample {key} appears twice.\n"
                "  Put the files of one sample next to each other, and use unique base names."
            )
        keys.add(key)
        members.append(_sample_image(sample))
        items.append(Item(key, _sample_label(sample, labels) if labeled else None))
    if not items:
        raise DataError(
            f"{pattern}: no shard has an image.\n  Write shards with jpg, png or webp members."
        )
    if labeled and all(item.label is None for item in items):
        raise DataError(
            f"{pattern}: no sample has a cls member, and labels are needed.\n"
            "  Add them, or use the shards as unlabeled data."
        )
    return WebDatasetSource(members, items)


def label_texts(pattern: str) -> list[str]:
    """Returns the text of each sample's `cls` member; "" if it has none.

    Raises:
        DataError: a shard is missing, remote, compressed or damaged.
        MissingPackage: webdataset is not installed.
    """
    return [_label_text(sample) or "" for sample in _samples(pattern)]


def _samples(pattern: str) -> Iterator[dict[str, Any]]:
    """Yields the samples of all shards: extension -> member, unique key and shard."""
    need("webdataset")
    from webdataset.shardlists import expand_urls  # here, as it loads torch if that is installed
    from webdataset.tariterators import group_by_keys

    paths = _shard_paths(pattern, expand_urls)
    for path, name in zip(paths, relative_names(paths), strict=True):
        rows = [{"fname": m.name, "data": m, "__url__": path} for m in _index(path)]
        try:
            for sample in group_by_keys(rows):
                sample["__key__"] = f"{name}/{printable(sample['__key__'])}"
                yield sample
        except ValueError as error:
            raise DataError(
                f"{path}: {error.args[0]}.\n  Every file of a sample needs its own extension."
            ) from error


def _shard_paths(pattern: str, expand_urls: Any) -> list[Path]:
    """Expands a pattern and checks that every shard is a local file."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", pattern):
        raise DataError(
            f"{pattern}: shards are read from local files only.\n"
            "  Download them first and name the folder they are in."
        )
    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise DataError(
            f"{pattern} is not a shard pattern: {error}.\n  Write it as shards-{{000..063}}.tar."
        ) from error
    paths = [home_path(name).absolute() for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} does not exist ({len(missing)} of {len(paths)} shards are missing).\n"
            f"  The pattern is {pattern}."
        )
    return paths


def _index(path: Path) -> list[_Member]:
    """Lists a shard's files from its headers."""
    members = []
    try:
        with open_regular(path) as file:
            head = file.read(6)
            kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), "")
            if kind:
                raise DataError(
                    f"{path} is compressed ({kind}), but kdedge reads shards by offset.\n"
                    "  Decompress it to a plain .tar; images in it are compressed already."
                )
            file.seek(0)
            stamp = FileStamp.of(os.fstat(file.fileno()))
            reader: Any = _TarReader(file)
            with tarfile.open(fileobj=reader, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                    if not member.isreg() or _META.match(member.name):
                        continue
                    n_left_bytes = stamp.size - member.offset_data
                    if member.issparse() or not 0 <= member.size <= n_left_bytes:
                        raise DataError(
                            f"{path}: {member.name} is stored as a sparse file, or claims more"
                            " bytes than the shard has.\n  Copy or write the shard again."
                        )
                    location = Location(str(path), member.offset_data, stamp)
                    members.append(_Member(member.name, member.size, location))
                end = tar.offset
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise DataError(
                    f"{path} is damaged or cut short at byte {end}: it has neither a tar"
                    " header nor the end mark there.\n  Copy or download the shard again."
                )
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{path} is not a readable tar file: {str(error).rstrip('.')}.") from error
    return members


def _sample_image(sample: dict[str, Any]) -> _Member:
    """Finds a sample's one image."""
    images = [sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample]
    # Rarer formats count only if there is no usual one: they may be a preview or a mask
    images = images or [sample[kind] for kind in sorted(more_extensions()) if kind in sample]
    if len(images) != 1:
        names = [value.name for value in sample.values() if isinstance(value, _Member)]
        raise DataError(
            f"{sample['__url__']}: sample {sample['__key__']} has {len(images)} images, expected"
            f" one ({', '.join(IMAGE_EXTENSIONS)}).\n  It consists of {', '.join(names)}."
        )
    member: _Member = images[0]
    if member.size > MAX_FILE_BYTES:
        raise DataError(
            f"{sample['__url__']}: {member.name} has {member.size} bytes, more than"
            f" {MAX_FILE_BYTES >> 20} MiB, too large for a photo."
        )
    return member


def _sample_label(sample: dict[str, Any], labels: LabelIndex) -> int | None:
    """Reads a sample's label; None if it has none."""
    text = _label_text(sample) or ""
    # As in WebDataset, a number is a position, even if a class has this number as its name
    position = labels.position(text)
    where = f"{sample['__url__']}: {sample['__key__']}.cls"
    # A class name has at most 200 characters
    return labels.read(text[:200], where) if position is None else position


def _label_text(sample: dict[str, Any]) -> str | None:
    if "cls" not in sample:
        return None
    _, size, (path, offset, *_) = sample["cls"]
    with Path(path).open("rb") as file:
        file.seek(offset)
        data = file.read(min(size, _MAX_LABEL_BYTES))
    return data.decode("utf-8", "backslashreplace").strip()


_MAX_HEADER_BYTES = 1 << 20  # a header may claim terabytes, and tarfile would read them in one call


class _TarReader:
    """A tar file that refuses to read too many bytes at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)
