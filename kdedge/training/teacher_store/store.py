"""The teacher store: what a teacher says of chosen views of all images, computed once and kept.

It holds unit-length image features, which every epoch, seed, student and loss can use, and no
logits: the class list may change. A view is the crop and flip that `data/views.py` draws, so the
student sees the very crop that a feature is of.

    <root>/<key>/store.json                       what the store is of; `key` is its hash
    <root>/<key>/view-0001/00000.safetensors      features of the first chunk of images in view 1

The number of views is not part of the key: a run that wants more of them adds files. Each file is
written atomically, says which store, view and chunk it belongs to and has a SHA-256, so processes
that fill one store at once, and stores put together from several machines, are safe: a file is
whole and ours, or it is computed again. Features are float16: components of a unit vector are off
by at most 2^-12, which moves logits at CLIP's scale of 100 by thousandths. Files are mapped into
memory, not read into it.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdedge.clip.tensor_file import encode_tensors
from kdedge.data.views import RATIO, Augmentation
from kdedge.errors import DataError
from kdedge.files import explain_os_error, read_json, sha256_json, write_atomic, write_json
from kdedge.progress import progress, readable_bytes
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.images import Images

log = logging.getLogger(__name__)

FORWARD_BATCH = 32
"""Images a forward pass of the teacher; a chunk is a number of whole passes."""

_MIN_CHUNK = 128
"""What a kill costs at most, and few enough that a laptop computes them in minutes."""
_MAX_FILES_A_VIEW = 1000
"""The kernel maps 65,530 files a process: enough for the views of 65 epochs."""
_FORMAT = "kdedge-teacher-store-1"
_BYTES_A_VALUE = 2


@dataclass(frozen=True, order=True)
class Chunk:
    """The features of one file.

    Attributes:
        view: from 1.
        number: which part of the images, from 0.
    """

    view: int
    number: int

    @property
    def claim(self) -> int:
        """The number by which a process claims it: unlike that of any other chunk of its store."""
        return self.view << 20 | self.number


def describe_store(
    *,
    provenance: str,
    images: Images,
    preprocess: Preprocess,
    augment: Augmentation | None,
    precision: str,
) -> dict[str, Any]:
    """Gives all that stored features depend on, as plain values; a store's key is their hash.

    Args:
        provenance: hash of what the features depend on, such as `RunModel.features_provenance`.
        images: whose views are stored. Their positions count, as views are drawn from them; labels
            do not.
        preprocess: the teacher's.
        augment: what draws the views; None for one view, as evaluation sees images.
        precision: of the teacher's forward pass.
    """
    items = images.source.items
    listed = [[i, items[i].key, images.digests[i]] for i in sorted(images.indices)]
    return {
        "format": _FORMAT,
        "teacher": provenance,
        "images": sha256_json(listed),
        "n_images": len(listed),
        "preprocess": preprocess.as_dict(),
        **_describe_views(augment),
        "precision": precision,
    }


def _describe_views(augment: Augmentation | None) -> dict[str, Any]:
    if augment is None:
        return {"views": "evaluation"}
    return {
        "view_seed": augment.seed,
        "crop_scale_min": augment.scale_min,
        "crop_ratio": list(RATIO),
        "flip": augment.flip,
        **({"strong_views": True} if augment.strong else {}),
    }


class TeacherStore:
    """One store's files.

    Attributes:
        key: hash of what it is of.
        path: its folder.
        indices: positions of its images in their source, ascending.
        dim: D_teacher.
        n_views: how many views are wanted of it.
        chunk_images: images a file; the last one of a view may have fewer.
    """

    def __init__(
        self,
        root: Path,
        description: Mapping[str, Any],
        *,
        indices: Iterable[int],
        dim: int,
        n_views: int,
    ) -> None:
        self.key = sha256_json(dict(description))
        self.path = root / self.key[:16]
        self.indices = sorted(indices)
        self.dim, self.n_views = dim, n_views
        passes = math.ceil(len(self.indices) / _MAX_FILES_A_VIEW / FORWARD_BATCH)
        self.chunk_images = max(_MIN_CHUNK, passes * FORWARD_BATCH)
        self._root, self._description = root, dict(description)
        self._features: dict[Chunk, Tensor] = {}

    @property
    def n_bytes(self) -> int:
        """Bytes of all features: images x views x dimensions x 2."""
        return len(self.indices) * self.n_views * self.dim * _BYTES_A_VALUE

    @property
    def size(self) -> str:
        """That product in words."""
        return (
            f"{len(self.indices):,} images x {self.n_views} views x {self.dim} dimensions x"
            f" {_BYTES_A_VALUE} bytes = {readable_bytes(self.n_bytes)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Its place and size as plain values."""
        sizes = {"n_images": len(self.indices), "n_views": self.n_views, "dim": self.dim}
        return {"path": str(self.path), "key": self.key, **sizes, "bytes": self.n_bytes}

    def __str__(self) -> str:
        """Its place and size."""
        return f"Teacher store {self.path}: {self.size}"

    def bytes_of(self, chunks: Iterable[Chunk]) -> int:
        """Bytes of these chunks' features."""
        return sum(len(self.positions(chunk)) for chunk in chunks) * self.dim * _BYTES_A_VALUE

    def chunks(self, shard: tuple[int, int] = (1, 1)) -> list[Chunk]:
        """The chunks of a shard (i, n), i from 1 to n: every n-th, view by view."""
        n_chunks = math.ceil(len(self.indices) / self.chunk_images)
        chunks = [
            Chunk(view, number) for view in range(1, self.n_views + 1) for number in range(n_chunks)
        ]
        return chunks[shard[0] - 1 :: shard[1]]

    def positions(self, chunk: Chunk) -> list[int]:
        """Positions in the source of a chunk's images."""
        return self.indices[chunk.number * self.chunk_images :][: self.chunk_images]

    def file(self, chunk: Chunk) -> Path:
        """Where a chunk is."""
        return self.path / f"view-{chunk.view:04d}" / f"{chunk.number:05d}.safetensors"

    def load(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Maps chunks whose files are whole and this store's, and gives the others.

        Every byte is read once to be hashed. A file that is damaged or of another store counts as
        missing, with a warning.
        """
        faults: dict[Path, str] = {}
        missing = []
        with progress("verifying the teacher store", len(chunks)) as advance:
            for done, chunk in enumerate(chunks, start=1):
                fault = self._load(chunk)
                if fault is not None:
                    missing.append(chunk)
                if fault:
                    faults[self.file(chunk)] = fault
                advance(done)
        if faults:
            first, why = next(iter(faults.items()))
            log.warning(
                "Files of the teacher store that are not used and are computed again: %d, first %s:"
                " %s.",
                len(faults),
                first,
                why,
            )
        return missing

    def has(self, chunk: Chunk) -> bool:
        """Whether a chunk's file is whole and this store's; maps it then."""
        return self._load(chunk) is None

    def _load(self, chunk: Chunk) -> str | None:
        """Maps a chunk; else why not, in words, which are none where there is no file."""
        path = self.file(chunk)
        if chunk in self._features:
            return None
        if not path.exists():
            return ""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                features: Tensor = file.get_tensor("teacher_features")
        except (OSError, SafetensorError) as error:
            return f"it is cut off or damaged ({error})"
        if any(metadata.get(key) != value for key, value in self._metadata(chunk).items()):
            return "it belongs to another store, view or chunk"
        shape = (len(self.positions(chunk)), self.dim)
        if features.dtype != torch.float16 or tuple(features.shape) != shape:
            return f"it holds {features.dtype} {list(features.shape)}, not float16 {list(shape)}"
        if metadata.get("sha256") != _sha256(features):
            return "its SHA-256 is another than when it was written"
        self._features[chunk] = features
        return None

    def _metadata(self, chunk: Chunk) -> dict[str, str]:
        return {"store": self.key, "view": str(chunk.view), "chunk": str(chunk.number)}

    def create(self) -> None:
        """Makes the folders and store.json, where they are not there.

        Raises:
            ResourceError: the folder may not be written, or the disk is full.
        """
        is_new = not self.path.exists()
        try:
            for view in range(1, self.n_views + 1):
                (self.path / f"view-{view:04d}").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        write_json(self.path / "store.json", self._description)
        if is_new:
            self._tell_of_nearest()

    def _tell_of_nearest(self) -> None:
        """Says why the store that differs least from this new one is not used."""
        found: list[tuple[int, str, str]] = []
        for file in sorted(self._root.glob("*/store.json")):
            try:
                other = read_json(file)
            except DataError:
                continue  # nothing is ever taken from a store by this file
            if file.parent != self.path and isinstance(other, dict):
                differing = _differences(other, self._description)
                found.append((len(differing), str(file.parent), "; ".join(differing)))
        if found:
            _, path, why = min(found)
            log.info(
                "The teacher store in %s is not used, as it is of something else: %s.", path, why
            )

    def write(self, chunk: Chunk, features: Tensor) -> None:
        """Writes a chunk atomically.

        Args:
            chunk: which.
            features: [chunk's images, D_teacher], float16, on the CPU.

        Raises:
            ResourceError: the disk is full or the folder may not be written; what is there stays.
        """
        features = features.contiguous()
        metadata = {**self._metadata(chunk), "sha256": _sha256(features)}
        write_atomic(self.file(chunk), encode_tensors({"teacher_features": features}, metadata))

    def read(self, positions: Sequence[int], view: int) -> Tensor:
        """[B, D_teacher], float32: the stored features of these images in a view.

        Args:
            positions: in the source; of images that are in the store.
            view: from 1; its chunks have to be loaded.
        """
        found = []
        for position in positions:
            row = bisect.bisect_left(self.indices, position)
            number, offset = divmod(row, self.chunk_images)
            found.append(self._features[Chunk(view, number)][offset])
        return torch.stack(found).float()


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.numpy().data).hexdigest()


def _differences(other: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What differs between two stores' descriptions, in words; hashes shortened."""

    def short(value: object) -> str:
        text = str(value)
        return text[:12] if len(text) == 64 else text

    return [
        f"{key} {short(other.get(key, 'not said'))}, not {short(own.get(key, 'not said'))}"
        for key in sorted(own.keys() | other.keys())
        if own.get(key) != other.get(key)
    ]
