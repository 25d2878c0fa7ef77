"""Decodes, augments and normalizes images, in worker processes or in this one.

Workers return 8-bit pixels, a quarter of the bytes of float32. Each full batch is normalized on its
device.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kdedge.data.sources import ImageSource
from kdedge.data.views import SECOND_SET, Augmentation, decode_pixels
from kdedge.errors import DataError, ResourceError
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.preprocess import (
    Preprocess,
    UnusableImage,
    decode_image,
    resize_and_crop,
)
from kdedge.runtime.threads import local_world_size

MAX_WORKERS = 8
_WORTH_WORKERS = 2000

PlannedImage = tuple[int, int, int]
"""Number of the image set, position in its source, number of the view (0 if nothing is drawn)."""

_Loaded = tuple[int, int, npt.NDArray[np.uint8] | None, str]
"""Image set, position, [3, H, W] image ([2, 3, H, W] with its clean one) or None, reason."""


@dataclass(frozen=True)
class Preparation:
    """How images are prepared for a batch.

    Attributes:
        preprocess: the model's size, mean, standard deviation and interpolation.
        augment: draws the views; None resizes and crops as evaluation does.
        with_clean: add to each view its image as it is preprocessed in evaluation.
    """

    preprocess: Preprocess
    augment: Augmentation | None = None
    with_clean: bool = False


class _Images(Dataset[_Loaded]):
    """Images by set, position and view; not normalized yet."""

    def __init__(self, sources: Sequence[ImageSource], preparation: Preparation) -> None:
        self._sources = sources
        self._preparation = preparation

    def __getitem__(self, place: PlannedImage) -> _Loaded:
        number, position, view = place
        preprocess, augment = self._preparation.preprocess, self._augment(number)
        try:
            data = self._sources[number].read(position)
            if augment is None:
                pixels = _pixels(resize_and_crop(decode_image(data), preprocess))
            else:
                decoded = decode_pixels(data)
                drawn = augment(decoded, preprocess, position=position, view=view)
                pixels = drawn.contiguous().numpy()
                if self._preparation.with_clean:
                    image = Image.fromarray(decoded.permute(1, 2, 0).numpy())
                    pixels = np.stack([pixels, _pixels(resize_and_crop(image, preprocess))])
        except UnusableImage as error:
            # By value: an exception raised in a worker arrives as text with a traceback in it.
            return number, position, None, error.reason
        except DataError as error:
            return number, position, None, str(error)
        return number, position, pixels, ""

    def _augment(self, number: int) -> Augmentation | None:
        """Draws a view; a second image set's views are independent of the first set's."""
        augment = self._preparation.augment
        if augment is None or number == 0:
            return augment
        return replace(augment, seed=augment.seed + SECOND_SET)


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """[3, H, W], contiguous: stacking would keep another memory order."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _collate(loaded: list[_Loaded]) -> tuple[torch.Tensor | None, list[tuple[int, int]], str]:
    """Stacks a batch: [B, 3, H, W] uint8, sets and positions, and the first error."""
    places = [(number, position) for number, position, _, _ in loaded]
    images = [image for _, _, image, _ in loaded if image is not None]
    if len(images) < len(loaded):
        number, position, _, reason = next(entry for entry in loaded if entry[2] is None)
        return None, [(number, position)], reason
    batch = torch.from_numpy(np.stack(images))
    if get_worker_info() is not None:
        # torch would do it in a thread, which loses a batch silently if memory is full
        batch.share_memory_()  # type: ignore[no-untyped-call]
    return batch, places, ""


def load_images(
    sources: Sequence[ImageSource],
    batches: Iterable[Sequence[PlannedImage]],
    preparation: Preparation,
    n_workers: int,
    *,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Yields the images of each batch, normalized, on a device."""
    loader: DataLoader[Any] = DataLoader(
        _Images(sources, preparation),
        # Any iterable works; torch's annotation allows only positions
        batch_sampler=cast(Any, batches),
        num_workers=n_workers,
        collate_fn=_collate,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context(__name__) if n_workers else None,
        pin_memory=device.type == "cuda",
        # The loader draws a number at its start; take it from here, not from the global generator.
        generator=torch.Generator(),
    )
    normalize_batch = _normalizer(preparation.preprocess, device)
    try:
        for pixels, places, reason in loader:
            if pixels is None:
                number, position = places[0]
                raise DataError(
                    f"{sources[number].items[position].key}: {reason}.\n"
                    "  It was readable when the run began. Check the disk and start again."
                )
            yield normalize_batch(pixels)
    except RuntimeError as error:
        what = end_of_worker(str(error).strip())
        if what is None:
            raise
        raise ResourceError(
            f"{what}.\n"
            "  Give the machine or its container more memory or a larger /dev/shm, or set"
            " optim.n_workers to a smaller number, or to 0."
        ) from error


def _normalizer(
    preprocess: Preprocess, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function that normalizes a batch of pixels on a device.

    [..., 3, H, W] uint8 -> float32, equal to `runtime.preprocess.normalize` to the last bit: the
    same three steps in the same order.
    """

    def channels(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)

    # A tensor: by a plain number, a GPU would multiply with the reciprocal instead of dividing
    full, mean, std = channels(255), channels(*preprocess.mean), channels(*preprocess.std)

    def normalize_batch(pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.to(device, non_blocking=True).to(torch.float32)
        return images.div_(full).sub_(mean).div_(std)

    return normalize_batch


def choose_n_workers(n_workers: int | Literal["auto"], n_images: int) -> int:
    """Chooses the number of worker processes.

    `auto` leaves one core to the training process, and starts no worker if there are too few images
    to gain from it.
    """
    if n_workers != "auto":
        return n_workers
    return min(MAX_WORKERS, max(0, n_cores() - 1)) if n_images >= _WORTH_WORKERS else 0


def n_cores() -> int:
    """Counts this process's cores: the container's, divided among torchrun's processes."""
    return max(1, usable_cores() // local_world_size())


def end_of_worker(text: str) -> str | None:
    """Explains torch's message about a worker that ended; None for any other message.

    An error in a worker arrives as an error of the same type whose text is the worker's traceback.
    """
    first, last = text.partition("\n")[0], text.rpartition("\n")[2]
    if first.startswith("DataLoader worker"):
        return f"a loader process died: {first.rstrip('.')}"
    if "</torch_" in last:  # the names of torch's shared memory
        return f"a loader process has no shared memory for a batch: {last}"
    return None


def start_worker(_: int) -> None:
    """Prepares a worker: only the main process handles Ctrl-C, and one thread is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.excepthook = _report_unless_hung_up
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _report_unless_hung_up(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Stays silent if the main process ended while it took a batch."""
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
def worker_context(module: str) -> multiprocessing.context.BaseContext:
    """Returns the context that starts workers: a fork server that has already loaded a module.

    Forking the training process would copy locks that its threads hold (torch, CUDA, TensorBoard),
    and hangs or warns. Spawning would load torch again in every worker of every epoch. The fork
    server loads it once (2 to 4 s a run), then starts a worker in milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    # The server and its workers inherit the mask: none of them ever sees a Ctrl-C, not even in
    # the moments before start_worker runs. The resource tracker unblocks the signal when it
    # starts, so it has to run before.
    if threading.current_thread() is threading.main_thread():
        multiprocessing.resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
