"""A folder of image files, with or without one subfolder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kdedge.data.sources import IMAGE_EXTENSIONS, FileSource, Item, LabelIndex
from kdedge.errors import DataError, os_reason
from kdedge.files import printable
from kdedge.messages import name_some, some_of
from kdedge.runtime.preprocess import UNREAD_FORMATS, more_extensions

# Names that operating systems leave in folders, in lower case
_SYSTEM_FILES = ("__macosx", ".ds_store", "thumbs.db", "desktop.ini", "@eadir")

_MAX_NAMED = 5


def open_source(folder: Path, *, class_names: Sequence[str], labeled: bool) -> FileSource:
    """Lists the images below a folder, sorted by their relative paths, which are the keys.

    Hidden files and folders, files of operating systems, and files without an image's extension are
    skipped; the last are counted. Symbolic links are followed, and each folder is read once.

    Args:
        folder: where to look, to any depth.
        class_names: in class-list order; used if `labeled`.
        labeled: read labels: the first folder level is the class name, as `LabelIndex` finds it.
            Images outside of any class folder have no label.

    Raises:
        DataError: no such folder, no image in it or in a class folder, or a folder whose name is
            not a class name.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}.\n  Name a folder of image files.")
    left_out: Counter[str] = Counter()
    names = sorted(_image_files(folder, left_out))
    if not names:
        remedy = f"Image files end in {', '.join('.' + e for e in IMAGE_EXTENSIONS)} and others."
        if left_out[".parquet"]:  # probably a download from Hugging Face
            remedy = f'For Parquet files, write in the recipe: parquet: "{folder}/**/*.parquet".'
        found = left_out_text(left_out) or "nothing at all"
        raise DataError(f"{folder} has no image files; found {found}.\n  {remedy}")
    labels: list[int | None] = [None] * len(names)
    if labeled:
        labels = _folder_labels(folder, names, class_names)
    items = [Item(printable(name), label) for name, label in zip(names, labels, strict=True)]
    if len({item.key for item in items}) != len(items):
        raise DataError(
            f"{folder} has file names that differ only in bytes that are not UTF-8.\n  Rename them."
        )
    return FileSource(folder, names, items, left_out)


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Describes how many files of each kind were skipped, and how to read images among them."""
    kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    more = sum(n for _, n in kinds[_MAX_NAMED:])
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds[:_MAX_NAMED])
    remedies = [
        f"{kind}: {UNREAD_FORMATS[kind[1:]]}"
        for kind in sorted(left_out)
        if UNREAD_FORMATS.get(kind[1:])
    ]
    return "; ".join([counts + (f" and {more} others" if more else ""), *remedies])


def has_images(left_out: Mapping[str, int]) -> bool:
    """Whether there are images among the skipped files."""
    return any(kind[1:] in UNREAD_FORMATS for kind in left_out)


def _image_files(root: Path, left_out: Counter[str]) -> Iterator[str]:
    """Yields image files as posix paths relative to the root; counts other files by extension."""
    extensions = more_extensions().union(IMAGE_EXTENSIONS)
    seen: set[tuple[int, int]] = set()
    real: list[str] = [""]
    linked: list[str] = []
    while real or linked:
        # Links come last, so that a folder has its own name even if a link points to it.
        relative = real.pop() if real else linked.pop(0)
        try:
            status = (root / relative).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / relative) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"{root / relative} cannot be listed: {os_reason(error)}.\n"
                "  Allow your user to read it, or move it away."
            ) from error
        for entry in listed:
            name = f"{relative}/{entry.name}" if relative else entry.name
            extension = printable(Path(name).suffix[1:].lower())
            if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_FILES:
                continue
            is_link = entry.is_symlink()
            # os.path.isdir raises no error for a link to an unreadable folder
            if os.path.isdir(entry.path) if is_link else entry.is_dir():  # noqa: PTH112
                (linked if is_link else real).append(name)
            elif extension in extensions:
                yield name
            else:
                left_out[f".{extension}" if extension else "other"] += 1


def _folder_labels(
    folder: Path, names: Sequence[str], class_names: Sequence[str]
) -> list[int | None]:
    """Finds each image's class by its first folder."""
    folders = list(dict.fromkeys(name.split("/", 1)[0] for name in names if "/" in name))
    if not folders:
        raise DataError(
            f"{folder} has {len(names)} images, but none in a class folder; the first is"
            f" {printable(names[0])}.\n  Put every image into a subfolder with the name of its"
            " class."
        )
    index = LabelIndex(class_names)
    labels = {name: index.find(printable(name)) for name in folders}
    unknown = [printable(name) for name, label in labels.items() if label is None]
    if unknown:
        # The unknown folder may be meant for a class that has none
        present = set(labels.values())
        missing = [name for i, name in enumerate(class_names) if i not in present]
        named = some_of((f'"{name}"{index.nearest(name)}' for name in unknown), _MAX_NAMED)
        raise DataError(
            f"{folder} has {len(folders)} class folders with images, the class list has"
            f" {len(class_names)} names.\n  "
            + (f"Missing: {name_some(missing)}. " if missing else "")
            + f"Unknown: {', '.join(named)}.\n"
            "  Folder names must equal class names; case, blanks and underscores do not matter."
        )
    return [labels[name.split("/", 1)[0]] if "/" in name else None for name in names]
