"""Records the images that a run was trained and measured on, by hashes, to count later changes.

The provenance has only one hash per list, which does not tell how many images changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.data.images import Images
from kdedge.files import write_atomic
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
    tensors: dict[str, npt.NDArray[np.uint64]] = {}
    for key, images in lists.items():
        if images is not None:
            rows = [(name, *row) for name, row in _rows(images, class_names).items()]
            tensors[key] = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    write_atomic(run.image_lists, safetensors.numpy.save(tensors))


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
            int(images.digests[i][:16], 16),
            0 if (label := items[i].label) is None else classes[label],
        )
        for i in images.indices
    }


def _short_hash(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def _read(run: RunFolder) -> dict[str, _Rows]:
    """The recorded hashes; empty without a record, or if it is damaged."""
    try:
        tensors = safetensors.numpy.load(run.image_lists.read_bytes())
        return {
            key: {int(name): (int(data), int(label)) for name, data, label in rows}
            for key, rows in tensors.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        log.info("%s is ignored: %s", run.image_lists, error)
        return {}


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
