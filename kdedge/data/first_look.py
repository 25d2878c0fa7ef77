"""Summarizes folders for a new recipe: number, classes and sizes of their images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdedge.data.images import scan
from kdedge.data.sources import folder as folder_source
from kdedge.data.sources import name_some
from kdedge.errors import DataError

_N_READ = 64
"""Number of images that are decoded; `kdedge check` decodes all."""


@dataclasses.dataclass(frozen=True)
class FirstLook:
    """Summary of a folder of images.

    Attributes:
        n_images: files that look like images.
        n_read: how many of these were decoded.
        n_unreadable: how many of the decoded ones cannot be read.
        sizes_px: (width, height) -> number of decoded images of that size.
        n_of_class: class name -> images, in class-list order; empty without labels.
        n_unlabeled: images outside of any class folder.
        left_out: kind -> files that are not read as images.
    """

    n_images: int
    n_read: int
    n_unreadable: int
    sizes_px: Mapping[tuple[int, int], int]
    n_of_class: Mapping[str, int]
    n_unlabeled: int
    left_out: Mapping[str, int]

    def lines(self) -> list[str]:
        """The summary as lines; the number of images comes first."""
        common = sorted(self.sizes_px.items(), key=lambda pair: (-pair[1], pair[0]))
        sizes = " and ".join(f"{width}x{height}" for (width, height), _ in common[:2])
        more = len(common) - 2
        found = [
            f"{self.n_images:,}, of {sizes}" + (f" and {more} other sizes" if more > 0 else "")
        ]
        if self.n_unreadable:
            found.append(f"{self.n_unreadable} of {self.n_read} sampled images cannot be read")
        present = [n for n in self.n_of_class.values() if n]
        if present:
            low, high = min(present), max(present)
            per_class = f"{low}" if low == high else f"{low} to {high}"
            found.append(f"{per_class} images per class, {len(present)} classes")
            absent = [name for name, n in self.n_of_class.items() if not n]
            found += [f"no images of {name_some(absent)}"] if absent else []
        if self.n_unlabeled and present:
            found.append(f"{self.n_unlabeled} outside of class folders are not used")
        if self.left_out:
            found.append(f"skipped: {folder_source.left_out_text(self.left_out)}")
        return found


def look_at(folder: Path, *, class_names: Sequence[str] = (), labeled: bool) -> FirstLook:
    """Lists a folder and decodes some of its images.

    Args:
        folder: folder of images, or of class folders if `labeled`.
        class_names: in class-list order.
        labeled: labels are needed.

    Raises:
        DataError: no such folder, fewer than two images (or labeled classes), none that can be
            read, or a class folder whose name is not a class name.
    """
    source = folder_source.open_source(folder, class_names=class_names, labeled=labeled)
    n_images = len(source.items)
    found = scan(source, rows=slice(None, None, -(-n_images // _N_READ)))
    if not found.good:
        raise DataError(
            f"{folder}: none of {len(found.bad)} sampled images can be read; the first is"
            f" {found.bad[0].key}: {found.bad[0].reason}.\n  Name a folder of image files."
        )
    labels = Counter(item.label for item in source.items)
    n_unlabeled = labels.pop(None, 0)
    n_of_class = {name: labels[i] for i, name in enumerate(class_names)} if labeled else {}
    if min(n_images, len(labels) if labeled else n_images) < 2:
        what = f"images of {len(labels)} class" if labeled else f"{n_images} image"
        raise DataError(f"{folder} has {what}, and two or more are needed.\n  Add others.")
    return FirstLook(
        n_images=n_images,
        n_read=len(found.good) + len(found.bad),
        n_unreadable=len(found.bad),
        sizes_px=found.sizes_px,
        n_of_class=n_of_class,
        n_unlabeled=n_unlabeled,
        left_out=source.left_out,
    )
