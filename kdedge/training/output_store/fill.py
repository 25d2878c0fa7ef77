"""Fills a store: runs the model once for each view of each image."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import Recipe
from kdedge.data.sources import ImageSource, InFiles
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import DivergedError, ResourceError
from kdedge.files import check_room
from kdedge.loading.decoding import (
    MAX_WORKERS,
    PlannedImage,
    choose_n_workers,
    load_images,
)
from kdedge.loading.loader import images_per_pass
from kdedge.locks import is_locked, lock_file
from kdedge.progress import progress, rough_duration
from kdedge.ray_workers import DoPieces, RayWorkers, WorkerResources
from kdedge.records.evaluation import Role
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import MethodModel, RunModel, load_teacher
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.training.loop.precision import MixedPrecision
from kdedge.training.output_store.store import FORWARD_BATCH, Chunk, OutputStore, n_crops

log = logging.getLogger(__name__)

_N_TRIALS = 2  # forward passes for an estimate of the time; the first one includes one-time work
_ROW_BYTES = 8 + 32  # position and hash of an image, which are stored with its output


@dataclass(frozen=True)
class StoreFiller:
    """Computes a model's outputs in a store.

    Attributes:
        store: the store to fill.
        model: the frozen model; a finished run or untrained if `ray_workers` compute.
        encode: gives the model's outputs [B, D] for images [B, 3, H, W]; picklable.
        source: the images.
        n_workers: processes that decode images.
        ray_workers: compute the chunks; None: this process computes them.
        group: processes of one training, which fill the store together.
    """

    store: OutputStore
    model: MethodModel
    encode: Callable[[MethodModel, Tensor], Tensor]
    source: ImageSource
    n_workers: int | Literal["auto"] = "auto"
    ray_workers: RayWorkers | None = None
    group: ProcessGroup = SINGLE_PROCESS

    def fill(self) -> None:
        """Computes the missing files.

        Waits for another command that is filling the store. A killed process loses only the chunks
        that it was computing.

        Raises:
            ResourceError: the disk is full or the folder is not writable; stored files are kept.
            DivergedError: an output is not finite.
            DataError: an image that was readable before is no longer readable.
            SetupError: another process does not see a run, the store or the images.
        """
        missing = self.group.on_rank0(self.store.load)
        if missing:
            if self.group.is_rank0:
                check_disk_space(self.store, missing)
                self.store.create()
            lock = self.store.path / ".lock"  # rank 0 holds it for all processes
            if self.group.is_rank0 and is_locked(lock):
                log.info(f"Waiting for another process that is filling {self.store.path}.")
            with lock_file(lock, wait_s=math.inf) if self.group.is_rank0 else nullcontext():
                missing = self.group.on_rank0(self.store.reload)
                if missing:
                    self._fill(missing)
                    return
        if not self.group.is_rank0:
            self.store.load()
        log.info(f"{self.store}. It is complete: nothing is computed.")

    def seconds(self, missing: Sequence[Chunk]) -> float:
        """Estimates the time for chunks, from forward passes over the first images of one chunk."""
        trial = next(self._passes(missing[0]))
        began = time.perf_counter()
        for images in self._images([trial] * _N_TRIALS, n_workers=0):
            self._outputs(images)
            took = time.perf_counter() - began
            began = time.perf_counter()
        return took / len(trial) * n_crops(missing)

    def _fill(self, missing: list[Chunk]) -> None:
        """Computes this process's shard of the missing chunks, and maps all new files."""
        n_of_all = f"{n_crops(missing):,} of {self.store.n_crops:,}"
        log.info(f"{self.store}. Computing {n_of_all} crops.")
        began = time.monotonic()
        shard = missing[self.group.rank :: self.group.world_size]
        n_done = 0
        what = f"filling the {self.store.name.lower()}"
        with progress(what, n_crops(shard), unit="crops") as advance:
            for n in self._computed(shard):
                n_done += n
                advance(n_done)
        self.group.all_reduce_max(0)  # waits until each process has written its chunks
        if self.store.load(missing):
            raise ResourceError(
                f"Files in {self.store.path} were damaged while they were written.\n"
                "  Check the disk, or choose another folder for the runs."
            )
        log.info(f"{self.store.name} filled in {rough_duration(time.monotonic() - began)}.")

    def _computed(self, chunks: Sequence[Chunk]) -> Iterator[int]:
        """Computes chunks here or by workers, and yields the size of each."""
        if self.ray_workers is None:
            return self.compute(chunks)
        others = {k: v for k, v in vars(self).items() if k not in ("model", "ray_workers", "group")}
        open_filler = functools.partial(_compute_in_worker, opener(self.model), others)
        paths = [self.store.path.absolute()]
        if isinstance(self.source, InFiles):
            paths.append(Path(self.source.location(0).path))
        return self.ray_workers.run(chunks, open_filler, paths)

    def compute(self, chunks: Iterable[Chunk]) -> Iterator[int]:
        """Computes and writes chunks, and yields the size of each."""
        chunks = list(chunks)
        passes = (batch for chunk in chunks for batch in self._passes(chunk))
        n_workers = choose_n_workers(self.n_workers, n_crops(chunks))
        with closing(self._images(passes, n_workers=n_workers)) as loaded:
            for chunk in chunks:
                n_passes = math.ceil(len(chunk.positions) / self._images_per_pass)
                outputs = torch.cat([self._outputs(x) for x in islice(loaded, n_passes)])
                self._check_finite(chunk, outputs)
                self.store.write(chunk, outputs)
                yield len(outputs)

    def _passes(self, chunk: Chunk) -> Iterator[list[PlannedImage]]:
        """The images of each forward pass; batches are always the same on one kind of device."""
        planned = [(0, position, chunk.view) for position in chunk.positions.tolist()]
        for start in range(0, len(planned), self._images_per_pass):
            yield planned[start : start + self._images_per_pass]

    def _images(
        self, passes: Iterable[list[PlannedImage]], *, n_workers: int
    ) -> Generator[Tensor, None, None]:
        """Loads the images of each forward pass."""
        return load_images(
            [self.source],
            passes,
            self.store.preparation,
            n_workers,
            batch_size=self._images_per_pass,
            device=self.model.device,
        )

    @property
    def _images_per_pass(self) -> int:
        return images_per_pass(FORWARD_BATCH, self.model.device)

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], in the store's dtype, on the CPU."""
        with MixedPrecision(self.store.precision, self.model.device).autocast():
            outputs = self.encode(self.model, images)
        return outputs.to(self.store.dtype).cpu()

    def _check_finite(self, chunk: Chunk, outputs: Tensor) -> None:
        """Raises a DivergedError if an output of a chunk is not finite."""
        bad_rows = (~outputs.isfinite().all(dim=1)).nonzero()
        if len(bad_rows):
            key = self.source.items[int(chunk.positions[int(bad_rows[0])])].key
            raise DivergedError(
                f"The model's outputs for {key} are not finite.\n"
                "  Its training diverged: train it again with a lower optim.lr, or set"
                " optim.precision: fp32."
            )


def check_disk_space(store: OutputStore, missing: Sequence[Chunk]) -> None:
    """Checks that the disk has room for chunks, before they are computed.

    Raises:
        ResourceError: the disk has too little room.
    """
    needed = n_crops(missing) * (store.n_bytes // store.n_crops + _ROW_BYTES)
    fewer = ", or lower student.views" if store.n_views > 1 else ""
    remedy = f"Free some space, or choose another folder for the runs{fewer}."
    check_room(store.path, needed, f"the {store.name.lower()}", remedy=remedy)


def opener(model: MethodModel) -> Callable[[WorkerResources], MethodModel]:
    """A picklable function that opens a finished run's model, or an untrained one, in a worker."""
    setup = model.setup
    root = model.setup.workspace.root.absolute()
    if isinstance(model, RunModel):
        run = model.run.path.absolute()
        return functools.partial(_open_run, root, run, model.recipe, model.class_names)
    return functools.partial(_open_untrained, root, setup.loaded, setup.role)


def _open_run(
    root: Path, run: Path, recipe: Recipe, names: Sequence[str], resources: WorkerResources
) -> MethodModel:
    return load_teacher(RunFolder.open(run), Workspace.of_worker(root, resources), recipe, names)


def _open_untrained(
    root: Path, loaded: LoadedRecipe, role: Role, resources: WorkerResources
) -> MethodModel:
    return MethodModel(set_up_role(loaded, role, Workspace.of_worker(root, resources)))


def _compute_in_worker(
    open_model: Callable[[WorkerResources], MethodModel],
    others: dict[str, Any],
    resources: WorkerResources,
) -> DoPieces[Chunk, int]:
    """`StoreFiller.compute` for a worker process, which opens the model; has all else it needs."""
    if others["n_workers"] == "auto":
        others = {**others, "n_workers": min(MAX_WORKERS, resources.n_cores - 1)}
    return StoreFiller(model=open_model(resources), **others).compute
