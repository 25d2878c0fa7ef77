"""Decodes, augments and normalizes images, in worker processes or in this one.

Workers write 8-bit pixels, a quarter of the bytes of float32, into memory that they share. Each
full batch is normalized on its device.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from kdedge.data.sources import ImageSource
from kdedge.errors import DataError, ResourceError
from kdedge.loading.batch import copy_to
from kdedge.loading.views import SECOND_SET, Augmentation, decode_pixels
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.preprocess import ImageError, Preprocess, decode_image, resize_and_crop
from kdedge.torchrun import local_world_size

MAX_WORKERS = 8
_MIN_IMAGES_FOR_WORKERS = 2000
_PREFETCHED = 2  # batches that each worker prepares ahead

PlannedImage = tuple[int, int, int]
"""Number of the image set, position in its source, number of the view (0 if nothing is drawn)."""

# Slot and size of a batch; image set and position of an unreadable image, and the reason
_Loaded = tuple[int, int, tuple[int, int] | None, str]


@dataclass(frozen=True)
class Preparation:
    """How images are prepared for a batch.

    Attributes:
        preprocess: the model's size, mean, standard deviation and interpolation.
        augment: draws the views; None to resize and crop as evaluation does.
        with_clean: also return each view's image with the preprocessing of evaluation.
    """

    preprocess: Preprocess
    augment: Augmentation | None = None
    with_clean: bool = False


@dataclass(frozen=True)
class _Batches(Dataset[_Loaded]):
    """Writes the images of a batch into a slot of memory, before normalization.

    Workers share the memory. New memory for each batch costs a tenth of the decoding, as the kernel
    clears its pages.

    Attributes:
        sources: the image sets.
        preparation: how the images are prepared.
        slots: [slots, B, H, W, 3] uint8; [slots, B, 2, H, W, 3] if views have a clean image, too.
    """

    sources: Sequence[ImageSource]
    preparation: Preparation
    slots: torch.Tensor

    def __getitem__(self, planned: tuple[int, Sequence[PlannedImage]]) -> _Loaded:
        slot, places = planned
        for pixels, (number, position, view) in zip(self.slots[slot], places, strict=False):
            try:
                self._load(pixels, number, position, view)
            except ImageError as error:
                # Returned, as an exception raised in a worker arrives with a traceback in its text
                return slot, len(places), (number, position), error.reason
            except DataError as error:
                return slot, len(places), (number, position), str(error)
        return slot, len(places), None, ""

    def _load(self, pixels: torch.Tensor, number: int, position: int, view: int) -> None:
        preprocess = self.preparation.preprocess
        augment = self.preparation.augment
        data = self.sources[number].read(position)
        if augment is None:
            pixels.numpy()[:] = resize_and_crop(decode_image(data), preprocess)
            return
        if number > 0:  # a second set's views do not depend on the first's
            augment = replace(augment, seed=augment.seed + SECOND_SET)
        decoded = decode_pixels(data)
        drawn = augment(decoded, preprocess, position=position, view=view).permute(1, 2, 0)
        if not self.preparation.with_clean:
            pixels.copy_(drawn)
            return
        pixels[0].copy_(drawn)
        image = Image.fromarray(decoded.permute(1, 2, 0).numpy())
        pixels.numpy()[1] = resize_and_crop(image, preprocess)


def load_images(
    sources: Sequence[ImageSource],
    batches: Iterable[Sequence[PlannedImage]],
    preparation: Preparation,
    n_workers: int,
    *,
    batch_size: int,
    device: torch.device,
) -> Generator[torch.Tensor, None, None]:
    """Yields the images of each batch, normalized, on a device.

    Args:
        sources: the image sets.
        batches: read when they are needed, and a few ahead if there are workers.
        preparation: how the images are prepared.
        n_workers: processes that decode; 0 decodes in this process.
        batch_size: size of the largest batch.
        device: where the images are needed.
    """
    # One slot for the batch that was yielded last, and `prefetch_factor` for each worker
    n_slots = 1 + _PREFETCHED * n_workers
    side = preparation.preprocess.size_px
    versions = (2,) if preparation.with_clean else ()
    slots = torch.empty((n_slots, batch_size, *versions, side, side, 3), dtype=torch.uint8)
    normalize_batch = normalizer(preparation.preprocess, device)
    with _explain_dead_worker():
        if n_workers:
            slots.share_memory_()  # type: ignore[no-untyped-call]
        loader: DataLoader[Any] = DataLoader(
            _Batches(sources, preparation, slots),
            # Any iterable works; torch's annotation allows only positions
            sampler=cast(Any, zip(itertools.cycle(range(n_slots)), batches, strict=False)),
            batch_size=None,
            num_workers=n_workers,
            prefetch_factor=_PREFETCHED if n_workers else None,
            worker_init_fn=_start_worker,
            multiprocessing_context=_worker_context(__name__) if n_workers else None,
            # The loader draws a number at its start, which must not advance the global generator
            generator=torch.Generator(),
        )
        with _without_callers_script():
            loaded = iter(loader)
        for slot, n_images, failed, reason in loaded:
            if failed is not None:
                number, position = failed
                raise DataError(
                    f"{sources[number].items[position].key}: {reason}.\n"
                    "  It was readable when the run began. Check the disk and start again."
                )
            yield normalize_batch(slots[slot, :n_images])


@contextlib.contextmanager
def _without_callers_script() -> Iterator[None]:
    """Context in which new processes do not run the caller's script again.

    Workers need modules of kdedge alone. Otherwise a script without `if __name__ == "__main__":`
    would start its training in each of them.
    """
    main = vars(sys.modules["__main__"])
    before: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(before))
    try:
        yield
    finally:
        main.update(before)


@contextlib.contextmanager
def _explain_dead_worker() -> Iterator[None]:
    """Context that explains torch's errors about a worker that died, or had no shared memory."""
    try:
        yield
    except RuntimeError as error:
        # An error in a worker arrives with the same type and the worker's traceback as its text
        lines = str(error).strip().split("\n")
        if lines[0].startswith("DataLoader worker"):
            what = f"a loader process died: {lines[0].rstrip('.')}"
        elif "</torch_" in lines[-1]:  # the names of torch's shared memory
            what = f"there is no shared memory for batches of images: {lines[-1]}"
        else:
            raise
        raise ResourceError(
            f"{what}.\n"
            "  Give the machine or its container more memory or a larger /dev/shm, or set"
            " optim.n_workers to a smaller number, or to 0."
        ) from error


def normalizer(
    preprocess: Preprocess, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function that normalizes a batch of pixels on a device.

    [..., H, W, 3] uint8 -> [..., 3, H, W] float32: `(pixel / 255 - mean) / std` in three steps of
    float32, as one step would differ in the last bit. The pixels may be overwritten after it
    returns. The memory order stays `channels_last`, in which convolutions are faster.
    """

    def channels(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)

    # Tensors, as a GPU would multiply with the reciprocal of a plain number instead of dividing
    full = channels(255)
    mean, std = channels(*preprocess.mean), channels(*preprocess.std)

    def normalize_batch(pixels: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda":
            pixels = pixels.pin_memory().to(device, non_blocking=True)
        images = pixels.movedim(-1, -3).to(torch.float32)
        return images.div_(full).sub_(mean).div_(std)

    return normalize_batch


def converted(images: torch.Tensor, given: Preprocess, wanted: Preprocess) -> torch.Tensor:
    """Converts images that were prepared for one model to another's size and normalization.

    [B, 3, H, W] -> [B, 3, H', W'], float32. Resizing and cropping are done already, so images of
    equal size and normalization are returned as they are.
    """
    is_equal_size = given.size_px == wanted.size_px
    if is_equal_size and (given.mean, given.std) == (wanted.mean, wanted.std):
        return images
    given_mean, given_std, mean, std = (
        copy_to(torch.tensor(values), images.device).view(3, 1, 1)
        for values in (given.mean, given.std, wanted.mean, wanted.std)
    )
    pixels = images * given_std + given_mean  # 0-1
    if not is_equal_size:
        size = (wanted.size_px, wanted.size_px)
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
    return (pixels - mean) / std


def choose_n_workers(n_workers: int | Literal["auto"], n_images: int) -> int:
    """Chooses the number of worker processes.

    `auto` leaves one core to the training process. If there are too few images to gain from
    workers, it starts none.
    """
    if n_workers != "auto":
        return n_workers
    n_cores = usable_cores() // local_world_size()  # those of this process
    return min(MAX_WORKERS, max(0, n_cores - 1)) if n_images >= _MIN_IMAGES_FOR_WORKERS else 0


def _start_worker(_: int) -> None:
    """Prepares a worker: only the main process handles Ctrl-C, and one thread is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.excepthook = _report_unless_disconnected
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _report_unless_disconnected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Reports an error, unless it only shows that the main process has ended."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _die_with_parent() -> None:
    """Ends the worker when the main process has ended, for whatever reason.

    torch's own watchdog watches the parent process, which here is the fork server. It also ends
    gracefully, which can wait forever for a reader of the worker's last batches.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@functools.cache
def _worker_context(module: str) -> multiprocessing.context.BaseContext:
    """Returns the context that starts workers: a fork server that has already loaded a module.

    Forking the training process would copy locks that its threads hold (torch, CUDA, TensorBoard),
    and hangs or warns. Spawning would load torch again in every worker of every epoch. The fork
    server loads it once (2 to 4 s a run), then starts a worker in milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    # The server and its workers inherit the signal mask, so that none of them gets a Ctrl-C, not
    # even before _start_worker runs. The resource tracker unblocks the signal when it starts, so it
    # has to be started first.
    if threading.current_thread() is threading.main_thread():
        multiprocessing.resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
