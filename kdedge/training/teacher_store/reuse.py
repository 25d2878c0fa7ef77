"""Features that other stores have of the same images, so that only new images are computed.

A set of images that has grown has a new store. It takes features from an older store if teacher,
preprocessing, precision and views are the same. Random crops are drawn by an image's position in
its source, so the position must be the same, too: new images have to be added at the end.
A feature that is computed in another batch may differ in its last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kdedge.errors import DataError
from kdedge.files import sha256_json
from kdedge.records.record import read_record
from kdedge.training.teacher_store.store import Chunk, TeacherStore, read_image_list

_OF_THE_IMAGES = ("images", "n_images")
"""Keys of a store's description in which a store of other images differs."""


@dataclass(frozen=True)
class _OtherStore:
    """Another store, and where it has this one's images: own position -> its position.

    `is_there` keeps what was seen first: another command may be filling that store meanwhile.
    """

    store: TeacherStore
    places: Mapping[int, int]
    is_there: dict[Chunk, bool] = field(default_factory=dict)


class OtherStores:
    """The stores in the same folder that have features of a store's images.

    Attributes:
        n_images: number of the store's images that one of them has.
        n_moved: number of images that one has at another position, and so with other crops.
        path: the one with the most of them; None if there is none.
    """

    def __init__(self, store: TeacherStore) -> None:
        self._store = store
        own_digests = store.digests or read_image_list(store.path, store.key) or {}
        known: set[str] = set()
        others = []
        for file in sorted(store.path.parent.glob("*/store.json")):
            if not own_digests or file.parent.name == store.path.name:
                continue
            if (opened := _opened(file, store)) is not None:
                other, digests = opened
                known.update(digests.values())
                others.append(_OtherStore(other, self._places(own_digests, digests)))
        others = sorted(others, key=lambda store: -len(store.places))
        self._others = [other for other in others if other.places]
        placed = set[int]().union(*(other.places for other in others))
        self.n_images = len(placed)
        self.n_moved = sum(d in known and p not in placed for p, d in own_digests.items())
        self.path = self._others[0].store.path if self._others else None

    def _places(self, digests: Mapping[int, str], other: Mapping[int, str]) -> dict[int, int]:
        if self._store.description.get("views") == "evaluation":  # prepared without chance
            positions = {digest: position for position, digest in other.items()}
            return {p: positions[digest] for p, digest in digests.items() if digest in positions}
        return {p: p for p, digest in digests.items() if other.get(p) == digest}

    def rows(self, chunk: Chunk) -> dict[int, tuple[TeacherStore, Chunk, int]]:
        """Position -> store, chunk and row of the features of a chunk's images."""
        places: dict[int, tuple[TeacherStore, Chunk, int]] = {}
        for other in self._others:
            for position in self._store.positions(chunk):
                if position not in other.places or position in places:
                    continue
                other_chunk, row = other.store.place(other.places[position], chunk.view)
                if other_chunk not in other.is_there:
                    other.is_there[other_chunk] = other.store.has(other_chunk)
                if other.is_there[other_chunk]:
                    places[position] = other.store, other_chunk, row
        return places

    def features(self, chunk: Chunk) -> dict[int, Tensor]:
        """Position -> stored features, [D_teacher], of a chunk's images."""
        rows = self.rows(chunk).items()
        return {position: store.features(part)[row] for position, (store, part, row) in rows}


def _opened(file: Path, like: TeacherStore) -> tuple[TeacherStore, dict[int, str]] | None:
    """A store and its images; None if its features are of another kind, or it is damaged."""
    try:
        description = read_record(dict[str, Any], file)
    except DataError:
        return None
    if _kind(description) != _kind(like.description):
        return None
    digests = read_image_list(file.parent, sha256_json(description))
    if digests is None:
        return None
    other = TeacherStore(
        file.parent.parent,
        description,
        indices=digests,
        dim=like.dim,
        n_views=like.n_views,
        dtype=like.dtype,
        name=like.name,
    )
    return (other, digests) if other.path.name == file.parent.name else None


def _kind(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key not in _OF_THE_IMAGES}
