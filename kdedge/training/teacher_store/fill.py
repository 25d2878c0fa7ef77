"""Fills a teacher store: runs the teacher once for each view of each image."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdedge.config.optim_spec import PrecisionName
from kdedge.data.loader import Wanted, choose_n_workers, view_batches
from kdedge.data.sources import Source
from kdedge.data.views import Augmentation
from kdedge.errors import DivergedError, ResourceError
from kdedge.progress import progress, readable_bytes, rough_duration
from kdedge.runtime.preprocess import Preprocess
from kdedge.training.loop.precision import Precision
from kdedge.training.teacher_store.claims import Claims
from kdedge.training.teacher_store.store import FORWARD_BATCH, Chunk, TeacherStore

log = logging.getLogger(__name__)

Shard = tuple[int, int]
"""Number of a shard, from 1, and the number of shards."""

_N_TRIALS = 2
"""Forward passes for an estimate of the time; the first one includes one-time work."""


class FeatureModel(Protocol):
    """Computes the features of a store: a teacher, or an image encoder alone."""

    @property
    def preprocess(self) -> Preprocess:
        """How its images are prepared."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        ...

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, float32, no graph."""
        ...


@dataclass(frozen=True)
class StoreFiller:
    """Computes the features of a store.

    Attributes:
        store: the store to fill.
        teacher: the frozen model, a teacher or an image encoder alone.
        source: the images.
        augment: draws the views; None to prepare images as in evaluation.
        precision: number format of the model's forward pass.
        n_workers: processes that decode images.
    """

    store: TeacherStore
    teacher: FeatureModel
    source: Source
    augment: Augmentation | None
    precision: PrecisionName
    n_workers: int | Literal["auto"]

    def fill(self, shard: Shard = (1, 1)) -> None:
        """Computes the missing files of a shard.

        Processes that fill one store at the same time share the work. A killed process loses only
        the chunks that it was computing.

        Raises:
            ResourceError: the disk is full or the folder is not writable; stored files are kept.
            DivergedError: a feature is not finite.
            DataError: an image that was readable before is no longer readable.
        """
        chunks = self.store.chunks(shard)
        missing = self.store.load(chunks)
        if not missing:
            log.info("%s. %s: the teacher is not run.", self.store, _state(shard, len(chunks)))
            return
        check_room(self.store, missing)
        self.store.create()
        took = rough_duration(self.seconds(missing))
        log.info(
            "%s. Computing %d of %d files: about %s on %s.",
            self.store,
            len(missing),
            len(chunks),
            took,
            self.teacher.device,
        )
        began = time.monotonic()
        with Claims(self.store.path / ".claims") as claims:
            _tidy(self.store, missing, claims)
            self._fill(missing, claims)
        log.info("Teacher store filled in %s.", rough_duration(time.monotonic() - began))

    def seconds(self, missing: Sequence[Chunk]) -> float:
        """Estimates how long chunks take, from forward passes over the first images of one."""
        if not missing:
            return 0.0
        trial = next(self._passes(missing[0]))
        times: list[float] = []
        began = time.perf_counter()
        for images in self._images([trial] * _N_TRIALS, n_workers=0):
            self._features(images)
            before, began = began, time.perf_counter()
            times.append(began - before)
        n_images = sum(len(self.store.positions(chunk)) for chunk in missing)
        return times[-1] / len(trial) * n_images

    def _fill(self, missing: list[Chunk], claims: Claims) -> None:
        n_crops = {chunk: len(self.store.positions(chunk)) for chunk in missing}
        n_all = sum(n_crops.values())
        with progress("filling the teacher store", n_all, unit="crops") as advance:
            while missing:
                written = set()
                for chunk in self._compute(missing, claims):
                    written.add(chunk)
                    n_left = sum(n_crops[other] for other in missing if other not in written)
                    advance(n_all - n_left)
                missing = self.store.load(missing)
                for chunk in written.intersection(missing):
                    raise ResourceError(
                        f"{self.store.file(chunk)} was damaged while it was written.\n"
                        "  Check the disk, or choose another folder with --runs."
                    )
                if missing:
                    log.info("Waiting for another process that is filling this teacher store.")
                    claims.wait_for(missing[0].claim)
                    claims.give_back(missing[0].claim)
                    missing = self.store.load(missing)

    def _compute(self, missing: Sequence[Chunk], claims: Claims) -> Iterator[Chunk]:
        """Computes and writes the chunks that no other process computes or has computed."""
        claimed: list[Chunk] = []

        def passes() -> Iterator[list[Wanted]]:
            for chunk in missing:
                if not claims.take(chunk.claim):
                    continue
                if self.store.has(chunk):
                    claims.give_back(chunk.claim)
                else:
                    claimed.append(chunk)
                    yield from self._passes(chunk)

        n_images = sum(len(self.store.positions(chunk)) for chunk in missing)
        n_workers = choose_n_workers(self.n_workers, n_images)
        features: list[Tensor] = []
        with contextlib.closing(self._images(passes(), n_workers=n_workers)) as loaded:
            for images in loaded:
                chunk = claimed[0]
                features.append(self._features(images))
                if sum(map(len, features)) == len(self.store.positions(chunk)):
                    self._write(chunk, torch.cat(features))
                    features = []
                    claims.give_back(claimed.pop(0).claim)
                    yield chunk

    def _passes(self, chunk: Chunk) -> Iterator[list[Wanted]]:
        """The images of each forward pass. Batches are always the same, so features are, too."""
        wanted = [(position, chunk.view) for position in self.store.positions(chunk)]
        for start in range(0, len(wanted), FORWARD_BATCH):
            yield wanted[start : start + FORWARD_BATCH]

    def _images(
        self, passes: Iterable[list[Wanted]], *, n_workers: int
    ) -> Generator[Tensor, None, None]:
        yield from view_batches(
            self.source,
            passes,
            preprocess=self.teacher.preprocess,
            augment=self.augment,
            n_workers=n_workers,
            device=self.teacher.device,
        )

    @functools.cached_property
    def _format(self) -> Precision:
        return Precision(self.precision, self.teacher.device)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], float16, on the CPU."""
        with self._format.autocast():
            features = self.teacher.forward_features(images)
        return features.to(torch.float16).cpu()

    def _write(self, chunk: Chunk, features: Tensor) -> None:
        odd = (~features.isfinite().all(dim=1)).nonzero()
        if len(odd):
            key = self.source.items[self.store.positions(chunk)[int(odd[0])]].key
            raise DivergedError(
                f"The teacher's features of {key} are not finite.\n"
                "  Train the teacher again, or set optim.precision: fp32."
            )
        self.store.write(chunk, features)


def check_room(store: TeacherStore, missing: Sequence[Chunk]) -> None:
    """Checks that the disk has room for chunks, before they are computed.

    Raises:
        ResourceError: it has too little room.
    """
    place = next(folder for folder in store.path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    needed = store.bytes_of(missing)
    if free < needed:
        raise ResourceError(
            f"{place} has {readable_bytes(free)} free, and the teacher store still needs"
            f" {readable_bytes(needed)}.\n"
            "  Free some space, choose another folder with --runs, or lower student.views."
        )


def _state(shard: Shard, n_files: int) -> str:
    """Says in words that a shard is complete."""
    i, n = shard
    if n == 1:
        return "It is complete"
    return f"Part {i} of {n} is complete" if n_files else f"Part {i} of {n} has no files"


def _tidy(store: TeacherStore, missing: Sequence[Chunk], claims: Claims) -> None:
    """Deletes partial files of killed processes."""
    chunks = {store.file(chunk): chunk for chunk in missing}
    for left in store.path.glob("view-*/.*"):
        chunk = chunks.get(left.with_name(left.name[1:].rpartition(".")[0]))
        if chunk is not None and claims.take(chunk.claim):
            left.unlink(missing_ok=True)
            claims.give_back(chunk.claim)
