"""Stores a frozen model's outputs for several views of images, so that each is computed once.

A teacher store holds a teacher's features, mostly of unit length, which every epoch, seed, student,
loss, class list and set of images can use; `pseudo-label` stores logits until its file is written.
A view is the crop and flip that `loading/views.py` draws, so the student sees exactly the crop of
which the teacher's output is stored.

    <root>/<key>/store.json                       what outputs depend on; `key` is its hash
    <root>/<key>/view-0001/<name>.safetensors     outputs for some images in view 1

Each file names its images by position and hash of their bytes, so that additional images and views
only need new files. Random crops are drawn by an image's position in its source, so an image that
has moved is computed again. Each file is written atomically, names its store and view, and has a
SHA-256. A file that is damaged or belongs to another store is computed again. Features are float16:
the error of a component of a unit vector is at most 2^-12, which changes logits at CLIP's scale of
100 by thousandths. Files are memory-mapped.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdedge.config.optim_spec import TrainingPrecision
from kdedge.errors import DataError, explaining_writes
from kdedge.files import sha256_json, write_json
from kdedge.loading.decoding import Preparation
from kdedge.loading.views import RATIO
from kdedge.progress import progress, readable_bytes
from kdedge.tensor_file import read_tensors, write_tensors

log = logging.getLogger(__name__)

FORWARD_BATCH = 32
"""Images per forward pass of the model; a chunk has a whole number of passes."""

_MIN_CHUNK = 128  # images, the most that a kill loses; a laptop computes them in minutes
_MAX_FILES_PER_VIEW = 1000  # for more images, chunks are larger
_MAX_MAPPED = 60_000  # the kernel maps 65,530 files per process; further files are read into memory
_FILE = 1 << 32  # a place in the store is the number of a file, times this, plus a row of the file


class Chunk(NamedTuple):
    """Images whose outputs in a view are computed together and go into one file.

    Attributes:
        view: number of the view, from 1.
        positions: [n] int64, the images' positions in the source, ascending.
    """

    view: int
    positions: NDArray[np.int64]


def n_crops(chunks: Iterable[Chunk]) -> int:
    """Number of outputs in all chunks."""
    return sum(len(chunk.positions) for chunk in chunks)


def _describe(
    features_hash: str, preparation: Preparation, precision: TrainingPrecision
) -> dict[str, Any]:
    """What stored outputs depend on, except for the images; a store's key is its hash."""
    views: dict[str, Any] = {"views": "evaluation"}
    augment = preparation.augment
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
        "format": "kdedge-output-store-3",
        "model": features_hash,
        "preprocess": preparation.preprocess.to_dict(),
        **views,
        "precision": precision,
    }


class OutputStore:
    """The files of a model's outputs, and the places of some images' outputs in them.

    Args:
        root: folder of all stores of this kind.
        features_hash: hash of what the outputs depend on, such as `RunModel.features_hash`.
        digests: position of each image in its source -> SHA-256 of its bytes, in hex.

    Attributes:
        key: hash of what the outputs depend on, except for the images.
        path: folder of the store.
        preparation: the model's preprocessing, and the drawing of views; without one, there is a
            single view, prepared as in evaluation.
        precision: number format of the model's forward pass.
        indices: [n] int64, positions of the images in their source, ascending.
        dim: D, numbers of an output.
        n_views: number of views that are needed.
        dtype: dtype of the stored values.
        name: name of the store in messages.
        mapped: files with outputs for the images, and all outputs of each file.
    """

    def __init__(
        self,
        root: Path,
        preparation: Preparation,
        *,
        features_hash: str,
        precision: TrainingPrecision,
        digests: Mapping[int, str],
        dim: int,
        n_views: int,
        dtype: torch.dtype = torch.float16,
        name: str = "Teacher store",
    ) -> None:
        self._description = _describe(features_hash, preparation, precision)
        self.key = sha256_json(self._description)
        self.path = root / self.key[:16]
        self.preparation = preparation
        self.precision = precision
        self.dim = dim
        self.n_views = n_views
        self.dtype = dtype
        self.name = name
        self.indices = np.array(sorted(digests), np.int64)
        hashes = b"".join(bytes.fromhex(digests[i]) for i in self.indices.tolist())
        self._sha256 = np.frombuffer(hashes, np.uint8).reshape(-1, 32)
        # The sorted unique ids of the images, the first image with each id, each image's id number
        self._ids, self._first, self._numbers = np.unique(
            self._to_ids(self.indices, self._sha256), return_index=True, return_inverse=True
        )
        self._places = np.full((n_views, len(self._ids)), -1, np.int64)
        self.mapped: list[tuple[Path, Tensor]] = []
        self._damaged: list[Path] = []

    @property
    def n_crops(self) -> int:
        """Number of outputs for all images in all views."""
        return len(self.indices) * self.n_views

    @property
    def n_bytes(self) -> int:
        """Size of all outputs in bytes: images x views x dimensions x bytes per value."""
        return self.n_crops * self.dim * self.dtype.itemsize

    @property
    def size(self) -> str:
        """The size in words, such as `400 images x 4 views x ...`."""
        return (
            f"{len(self.indices):,} images x {self.n_views} view{'s' if self.n_views > 1 else ''} x"
            f" {self.dim} dimensions x"
            f" {self.dtype.itemsize} bytes = {readable_bytes(self.n_bytes)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Path and size of the store as plain values."""
        sizes = {"n_images": len(self.indices), "n_views": self.n_views, "dim": self.dim}
        return {"path": str(self.path), "key": self.key, **sizes, "bytes": self.n_bytes}

    def __str__(self) -> str:
        """Path and size of the store."""
        return f"{self.name} {self.path}: {self.size}"

    def load(self, written: Sequence[Chunk] = ()) -> list[Chunk]:
        """Maps the files with outputs for the images, and returns the chunks that are missing.

        Every byte of these files is read once for its hash. A file that is damaged or belongs to
        another store is left out, with one warning.

        Args:
            written: chunks whose files are new, which a network share may not list yet.
        """
        mapped = {file for file, _ in self.mapped}
        files = {self._file(chunk): chunk.view for chunk in written}
        for view in range(1, self.n_views + 1):
            in_folder = set(self._folder(view).glob("*.safetensors"))
            files.update(dict.fromkeys(in_folder - mapped, view))
        damaged = []
        with progress(f"verifying the {self.name.lower()}", len(files) or None) as advance:
            for done, (file, view) in enumerate(sorted(files.items()), start=1):
                if not self._map(file, view):
                    damaged.append(file)
                advance(done)
        missing = self._missing()
        if missing and damaged and not self._damaged:
            log.warning(
                f"Computing damaged files of the {self.name.lower()} again: {len(damaged)}, for"
                f" example {damaged[0]}."
            )
        self._damaged = damaged
        return missing

    def _missing(self) -> list[Chunk]:
        """The chunks of images and views that have no outputs yet."""
        passes = math.ceil(len(self.indices) / _MAX_FILES_PER_VIEW / FORWARD_BATCH)
        size = max(_MIN_CHUNK, passes * FORWARD_BATCH)
        chunks = []
        for view, places in enumerate(self._places, start=1):
            positions = self.indices[places[self._numbers] < 0]
            chunks += [Chunk(view, positions[i : i + size]) for i in range(0, len(positions), size)]
        return chunks

    def _map(self, file: Path, view: int) -> bool:
        """Maps a file if it has outputs for the images; False if it is damaged or foreign."""
        try:
            with safe_open(file, framework="np") as opened:
                positions, sha256 = map(opened.get_tensor, ("positions", "sha256"))
            ids = self._to_ids(positions, sha256)
            numbers = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
            is_same = (self._sha256[self._first[numbers]] == sha256).all(axis=1)
            (rows,) = np.nonzero(is_same & (self._ids[numbers] == ids))
            if not len(rows):  # outputs for other images only, so its hash is not checked
                return True
            tensors, facts = read_tensors(file)
        except (OSError, SafetensorError, DataError):
            return False
        if facts != self._facts(view):
            return False
        outputs = tensors["outputs"]
        self._places[view - 1, numbers[rows]] = len(self.mapped) * _FILE + rows
        self.mapped.append((file, outputs if len(self.mapped) < _MAX_MAPPED else outputs.clone()))
        return True

    def _to_ids(self, positions: NDArray[np.int64], sha256: NDArray[np.uint8]) -> NDArray[np.int64]:
        """[n], ids that identify images: positions, or hashes if views have no random crops."""
        if self.preparation.augment is None:
            return np.frombuffer(sha256[:, :8].tobytes(), np.int64)
        return positions

    def _folder(self, view: int) -> Path:
        return self.path / f"view-{view:04d}"

    def _facts(self, view: int) -> dict[str, str]:
        """Metadata of the files of a view."""
        return {"store": self.key, "view": str(view)}

    def _hashes(self, chunk: Chunk) -> NDArray[np.uint8]:
        """[n, 32], SHA-256 of each image of a chunk."""
        return self._sha256[np.searchsorted(self.indices, chunk.positions)]

    def _file(self, chunk: Chunk) -> Path:
        """File of a chunk, with a name that is unique to the chunk's images."""
        images = chunk.positions.tobytes() + self._hashes(chunk).tobytes()
        return self._folder(chunk.view) / f"{hashlib.sha256(images).hexdigest()[:16]}.safetensors"

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, which only writes and may have another current folder."""
        lookup = dict.fromkeys(("_ids", "_first", "_numbers", "_places"))
        return {**vars(self), "path": self.path.absolute(), "mapped": [], **lookup}

    def create(self) -> None:
        """Creates the folders and store.json.

        Raises:
            ResourceError: the folder is not writable, or the disk is full.
        """
        with explaining_writes(self.path):
            for view in range(1, self.n_views + 1):
                self._folder(view).mkdir(parents=True, exist_ok=True)
        write_json(self.path / "store.json", self._description)

    def reload(self) -> list[Chunk]:
        """Loads files that another command has written since, and returns missing chunks.

        Deletes damaged files and half-written files of killed processes, so only the process that
        holds the store's lock may call it.

        Raises:
            ResourceError: the folder is not writable.
        """
        missing = self.load()
        with explaining_writes(self.path):
            for file in (*self._damaged, *self.path.glob("view-*/.*")):
                file.unlink(missing_ok=True)
        return missing

    def write(self, chunk: Chunk, outputs: Tensor) -> None:
        """Writes a chunk atomically.

        Args:
            chunk: the chunk.
            outputs: [n, D], in the store's dtype, on the CPU.

        Raises:
            ResourceError: the disk is full or the folder is not writable; stored files are kept.
        """
        tensors = {
            "outputs": outputs.contiguous(),
            "positions": torch.tensor(chunk.positions),
            "sha256": torch.tensor(self._hashes(chunk)),
        }
        write_tensors(self._file(chunk), tensors, self._facts(chunk.view))

    def read(self, positions: Sequence[int], view: int) -> Tensor:
        """[B, D], float32: the stored outputs for images in a view.

        Args:
            positions: positions in the source of images that are in the store.
            view: number of the view, from 1; its files must be loaded.
        """
        numbers = self._numbers[np.searchsorted(self.indices, positions)]
        places = self._places[view - 1, numbers].tolist()
        # CPU autocast to bfloat16 refuses to stack float16
        return torch.stack([self.mapped[at // _FILE][1][at % _FILE].float() for at in places])
