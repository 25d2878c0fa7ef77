"""Records the images that a run was trained and measured on, by hashes, to count later changes.

The provenance has only one hash per list, which does not tell how many images changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from kdedge.clip.tensor_file import read_tensors, write_tensors
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.data.images import Images
from kdedge.errors import DataError
from kdedge.runs.folder import RunFolder

log = logging.getLogger(__name__)

Lists = Mapping[str, Images | None]
"""Name of a source under `data` -> its used images."""

_Rows = dict[int, tuple[int, int]]
"""Hash of an image's name -> hashes of its bytes and of its class; 0 for no class."""


def write_image_lists(run: RunFolder, lists: Lists, class_names: Sequence[str]) -> None:
    """Writes the first 64 bits of the hashes of names, contents and classes.

    Raises:
        ResourceError: the file cannot be written.
    """
    tensors = {}
    for key, images in lists.items():
        if images is not None:
            rows = [(name, *row) for name, row in _rows(images, class_names).items()]
            tensors[key] = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    write_tensors(run.image_lists, tensors, {})


def describe_changes(run: RunFolder, lists: Lists, class_names: Sequence[str]) -> str | None:
    """Describes how many images differ from those that a run recorded; None if none do.

    A renamed image with the same bytes and class is no change. Without a record nothing is known to
    differ.

    Args:
        run: the run.
        lists: images as they are now.
        class_names: what their labels are positions in.
    """
    recorded = _read(run)
    said = []
    for key, images in lists.items():
        if images is not None and key in recorded:
            said += _counted(key, recorded[key], _rows(images, class_names))
    return "; ".join(said) or None


def warn_of_changes(
    run: RunFolder, loaded: LoadedRecipe, lists: Lists, class_names: Sequence[str]
) -> None:
    """Warns once if the images of a run's recipe differ from those that it recorded.

    Args:
        run: the run.
        loaded: its recipe with overrides. Sources that overrides replace are not compared.
        lists: images as they are now.
        class_names: what their labels are positions in.
    """
    now, then = loaded.recipe.data, load_recipe(run.recipe).recipe.data
    same = {key: images for key, images in lists.items() if getattr(now, key) == getattr(then, key)}
    changes = describe_changes(run, same, class_names)
    if changes is not None:
        log.warning(
            "The images of %s have changed since it was trained: %s.\n"
            "  Do not compare the figures from before with those from now.",
            *(run.name, changes),
        )


def _rows(images: Images, class_names: Sequence[str]) -> _Rows:
    classes = [_short_hash(name) for name in class_names]
    items = images.source.items
    return {
        _short_hash(items[i].key): (
            _number(bytes.fromhex(images.digests[i])),
            0 if (label := items[i].label) is None else classes[label],
        )
        for i in images.indices
    }


def _short_hash(text: str) -> int:
    return _number(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big", signed=True)


def _read(run: RunFolder) -> dict[str, _Rows]:
    """The recorded hashes; empty without a record, or if it is damaged."""
    if not run.image_lists.exists():
        return {}
    try:
        tensors, _ = read_tensors(run.image_lists)
    except DataError as error:
        log.info("%s It is ignored.", error)
        return {}
    return {
        key: {name: (data, label) for name, data, label in rows.view(torch.int64).tolist()}
        for key, rows in tensors.items()
    }


def _counted(key: str, before: _Rows, now: _Rows) -> list[str]:
    gone = [before[name] for name in before.keys() - now.keys()]
    new = [now[name] for name in now.keys() - before.keys()]
    renamed = (Counter(gone) & Counter(new)).total()
    both = [(before[name], now[name]) for name in before.keys() & now.keys()]
    changed = sum(old[0] != other[0] for old, other in both)
    relabeled = sum(old[0] == other[0] and old[1] != other[1] for old, other in both)
    counts = {
        "are missing or unreadable": len(gone) - renamed,
        "changed": changed,
        "have another class": relabeled,
    }
    said = [f"{n} of {len(before)} {key} images {what}" for what, n in counts.items() if n]
    n_new = len(new) - renamed
    return [*said, f"{n_new} {key} images are new"] if n_new else said
