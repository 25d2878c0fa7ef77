"""The teacher store: a teacher's features of several views of all images, computed once.

It holds unit-length image features, which every epoch, seed, student and loss can use. It holds no
logits, so the class list may change. A view is the crop and flip that `data/views.py` draws, so the
student sees exactly the crop from which a feature was computed.

    <root>/<key>/store.json                       what features depend on; `key` is its hash
    <root>/<key>/images.safetensors               its images: positions and hashes of their bytes
    <root>/<key>/view-0001/00000.safetensors      features of the first chunk of images in view 1

The number of views is not part of the key: a run that needs more of them adds files. Each file is
written atomically, names its store, view and chunk, and has a SHA-256. A file that is damaged or of
another store is computed again. Features are float16: components of a unit vector are off by at
most 2^-12, which changes logits at CLIP's scale of 100 by thousandths. Files are memory-mapped.
"""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdedge.clip.tensor_file import read_tensors, write_tensors
from kdedge.data.images import Images
from kdedge.data.views import RATIO, Augmentation
from kdedge.errors import DataError
from kdedge.files import explained, sha256_json, write_json
from kdedge.progress import progress, readable_bytes
from kdedge.runtime.preprocess import Preprocess

log = logging.getLogger(__name__)

FORWARD_BATCH = 32
"""Images a forward pass of the teacher; a chunk is a number of whole passes."""

_MIN_CHUNK = 128
"""The most that a kill loses; a laptop computes this many in minutes."""
_MAX_FILES_A_VIEW = 1000
"""The kernel maps 65,530 files per process: enough for the views of 65 epochs."""
_FORMAT = "kdedge-teacher-store-1"
_IMAGES = "images.safetensors"


@dataclass(frozen=True, order=True)
class Chunk:
    """The features of one file.

    Attributes:
        view: from 1.
        number: number of the part of the images, from 0.
    """

    view: int
    number: int


def describe_store(
    *,
    provenance: str,
    images: Images,
    preprocess: Preprocess,
    augment: Augmentation | None,
    precision: str,
) -> dict[str, Any]:
    """Everything that stored features depend on, as plain values; a store's key is their hash.

    Args:
        provenance: provenance hash of the features, such as `RunModel.features_provenance`.
        images: images whose views are stored. Their positions matter, as views are drawn by
            position; labels do not.
        preprocess: the teacher's preprocessing.
        augment: draws the views; None for a single view, prepared as in evaluation.
        precision: number format of the teacher's forward pass.
    """
    items = images.source.items
    listed = [[i, items[i].key, images.digests[i]] for i in sorted(images.indices)]
    views: dict[str, Any] = {"views": "evaluation"}
    if augment is not None:
        views = {
            "view_seed": augment.seed,
            "crop_scale_min": augment.scale_min,
            "crop_ratio": list(RATIO),
            "flip": augment.flip,
            "resized_by": "torch",
            **({"strong_views": True} if augment.strong else {}),
        }
    return {
        "format": _FORMAT,
        "teacher": provenance,
        "images": sha256_json(listed),
        "n_images": len(listed),
        "preprocess": preprocess.as_dict(),
        **views,
        "precision": precision,
    }


class TeacherStore:
    """One store's files.

    Attributes:
        key: hash of everything that the features depend on.
        path: its folder.
        indices: positions of its images in their source, ascending.
        dim: D_teacher.
        n_views: number of views that are needed.
        dtype: of the stored values.
        name: what it is called in messages.
        description: what its features depend on.
        digests: position -> SHA-256 of each image's bytes, in hex, so that a store of more images
            can take features from this one; None if only `images.safetensors` has them.
        chunk_images: images per file; the last file of a view may have fewer.
    """

    def __init__(
        self,
        root: Path,
        description: Mapping[str, Any],
        *,
        indices: Iterable[int],
        dim: int,
        n_views: int,
        dtype: torch.dtype = torch.float16,
        name: str = "Teacher store",
        digests: Mapping[int, str] | None = None,
    ) -> None:
        self.key = sha256_json(dict(description))
        self.path = root / self.key[:16]
        self.indices = sorted(indices)
        self.dim, self.n_views = dim, n_views
        self.dtype, self.name = dtype, name
        passes = math.ceil(len(self.indices) / _MAX_FILES_A_VIEW / FORWARD_BATCH)
        self.chunk_images = max(_MIN_CHUNK, passes * FORWARD_BATCH)
        self.description = dict(description)
        self.digests = None if digests is None else {i: digests[i] for i in self.indices}
        self._features: dict[Chunk, Tensor] = {}

    @property
    def n_bytes(self) -> int:
        """Size of all features in bytes: images x views x dimensions x 2."""
        return len(self.indices) * self.n_views * self.dim * self.dtype.itemsize

    @property
    def size(self) -> str:
        """The size in words, such as `400 images x 4 views x ...`."""
        return (
            f"{len(self.indices):,} images x {self.n_views} views x {self.dim} dimensions x"
            f" {self.dtype.itemsize} bytes = {readable_bytes(self.n_bytes)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Its place and size as plain values."""
        sizes = {"n_images": len(self.indices), "n_views": self.n_views, "dim": self.dim}
        return {"path": str(self.path), "key": self.key, **sizes, "bytes": self.n_bytes}

    def __str__(self) -> str:
        """Its place and size."""
        return f"{self.name} {self.path}: {self.size}"

    def bytes_of(self, chunks: Iterable[Chunk]) -> int:
        """Size of the chunks' features in bytes."""
        return sum(len(self.positions(chunk)) for chunk in chunks) * self.dim * self.dtype.itemsize

    def chunks(self) -> list[Chunk]:
        """All chunks, view by view."""
        n_chunks = math.ceil(len(self.indices) / self.chunk_images)
        return [
            Chunk(view, number) for view in range(1, self.n_views + 1) for number in range(n_chunks)
        ]

    def positions(self, chunk: Chunk) -> list[int]:
        """Positions in the source of a chunk's images."""
        return self.indices[chunk.number * self.chunk_images :][: self.chunk_images]

    def file(self, chunk: Chunk) -> Path:
        """File of a chunk."""
        return self.path / f"view-{chunk.view:04d}" / f"{chunk.number:05d}.safetensors"

    def load(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Maps the chunks with a valid file of this store, and returns the others.

        Every byte is read once for its hash. A file that is damaged or of another store counts as
        missing, with a warning.
        """
        missing = []
        with progress(f"verifying the {self.name.lower()}", len(chunks)) as advance:
            for done, chunk in enumerate(chunks, start=1):
                if not self.has(chunk):
                    missing.append(chunk)
                advance(done)
        damaged = [file for file in map(self.file, missing) if file.exists()]
        if damaged:
            log.warning(
                "Computing damaged files of the %s again: %d, for example %s.",
                *(self.name.lower(), len(damaged), damaged[0]),
            )
        return missing

    def has(self, chunk: Chunk) -> bool:
        """Whether a chunk has a valid file of this store. If so, maps it."""
        if chunk in self._features:
            return True
        try:
            tensors, facts = read_tensors(self.file(chunk))
        except DataError:
            return False
        features = tensors.get("teacher_features", torch.empty(0))
        shape = (len(self.positions(chunk)), self.dim)
        is_own = facts.items() >= self._facts(chunk).items()
        if is_own and (features.dtype, features.shape) == (self.dtype, shape):
            self._features[chunk] = features
            return True
        return False

    def _facts(self, chunk: Chunk) -> dict[str, str]:
        return {"store": self.key, "view": str(chunk.view), "chunk": str(chunk.number)}

    def __getstate__(self) -> dict[str, Any]:
        """Another process may work in another folder, and maps the files itself."""
        return {**vars(self), "path": self.path.absolute(), "_features": {}, "digests": None}

    def tidy(self, chunk: Chunk) -> None:
        """Deletes the partial files that killed processes have left of a chunk."""
        file = self.file(chunk)
        for left in file.parent.glob(f".{file.name}.*"):
            left.unlink(missing_ok=True)

    def create(self) -> None:
        """Creates the folders, store.json and the list of images if they are missing.

        Raises:
            ResourceError: the folder is not writable, or the disk is full.
        """
        with explained(self.path):
            for view in range(1, self.n_views + 1):
                (self.path / f"view-{view:04d}").mkdir(parents=True, exist_ok=True)
        write_json(self.path / "store.json", self.description)
        self.note_images()

    def note_images(self) -> None:
        """Writes the list of images where it is known and missing."""
        file = self.path / _IMAGES
        if not self.digests or not self.path.exists() or file.exists():
            return
        hashes = b"".join(map(bytes.fromhex, self.digests.values()))
        tensors = {
            "positions": torch.tensor(list(self.digests), dtype=torch.int64),
            "sha256": torch.frombuffer(bytearray(hashes), dtype=torch.uint8).reshape(-1, 32),
        }
        write_tensors(file, tensors, {"store": self.key})

    def write(self, chunk: Chunk, features: Tensor) -> None:
        """Writes a chunk atomically.

        Args:
            chunk: which.
            features: [chunk's images, D_teacher], in the store's dtype, on the CPU.

        Raises:
            ResourceError: the disk is full or the folder is not writable; stored files are kept.
        """
        tensors = {"teacher_features": features.contiguous()}
        write_tensors(self.file(chunk), tensors, self._facts(chunk))

    def read(self, positions: Sequence[int], view: int) -> Tensor:
        """[B, D_teacher], float32: the stored features of images in a view.

        Args:
            positions: positions in the source of images that are in the store.
            view: from 1; its chunks must be loaded.
        """
        rows = []
        for position in positions:
            chunk, row = self.place(position, view)
            rows.append(self._features[chunk][row])
        return torch.stack(rows).float()

    def place(self, position: int, view: int) -> tuple[Chunk, int]:
        """The chunk of an image's features in a view, and their row in it."""
        row = bisect.bisect_left(self.indices, position)
        number, offset = divmod(row, self.chunk_images)
        return Chunk(view, number), offset

    def features(self, chunk: Chunk) -> Tensor:
        """[chunk's images, D_teacher]: a loaded chunk's features, as they are stored."""
        return self._features[chunk]


def read_image_list(folder: Path, key: str) -> dict[int, str] | None:
    """Position -> SHA-256 in hex; None if there is no list, or it is damaged or another store's."""
    try:
        tensors, facts = read_tensors(folder / _IMAGES)
    except DataError:
        return None
    if facts != {"store": key}:
        return None
    rows = zip(tensors["positions"].tolist(), tensors["sha256"].numpy(), strict=True)
    return {position: bytes(row).hex() for position, row in rows}
