"""Batches whose contents depend on the seed, the epoch and the step alone.

Order and augmentation come from counter-based random streams (`data/views.py`), so that any step of
any epoch can be reached at once, with any number of workers, and is the same to the last bit.

Workers hand over 8-bit pixels, a fourth of what the model sees; a batch is normalized at once, on
the device where it is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kdedge.data._workers import end_of_worker, start_worker, worker_context
from kdedge.data.batch import Batch, FeaturesOfViews, Weights
from kdedge.data.sources import Source
from kdedge.data.views import ORDER, Augmentation, random_stream
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup, local_world_size
from kdedge.errors import DataError, RecipeError, ResourceError
from kdedge.runtime.preprocess import Preprocess, UnusableImage, decode_image, resize_and_crop

_MAX_WORKERS = 8
_WORTH_WORKERS = 2000

Wanted = tuple[int, int]
"""Position in the source, and the view of it; 0 where nothing is drawn."""

Loaded = tuple[int, npt.NDArray[np.uint8] | None, str]
"""Position in the source, [3, H, W] image (with its clean one [2, 3, H, W]) or None, and why."""

_CPU = torch.device("cpu")


def n_steps(n_images: int, batch_size: int) -> int:
    """Gives the steps of an epoch: an incomplete last batch is dropped, unless it is the only one.

    Raises:
        DataError: there are no images.
    """
    if n_images < 1:
        raise DataError("there are no images to train on.")
    return max(1, n_images // batch_size)


class _Images(Dataset[Loaded]):
    """Images by their position in the source and their view, all but normalized."""

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        augment: Augmentation | None,
        *,
        with_clean: bool,
    ) -> None:
        self._source = source
        self._preprocess = preprocess
        self._augment = augment
        self._with_clean = with_clean

    def __getitem__(self, wanted: Wanted) -> Loaded:
        position, view = wanted
        try:
            decoded = decode_image(self._source.read(position))
            if self._augment is None:
                image = resize_and_crop(decoded, self._preprocess)
            else:
                image = self._augment(decoded, self._preprocess, position=position, view=view)
        except UnusableImage as error:
            # Told by value: an exception raised in a worker arrives as text with a traceback in it.
            return position, None, error.reason
        except DataError as error:
            return position, None, str(error)
        pixels = _pixels(image)
        if self._with_clean:
            pixels = np.stack([pixels, _pixels(resize_and_crop(decoded, self._preprocess))])
        return position, pixels, ""


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """[3, H, W], in that order in memory: a stack would keep any other."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _collate(loaded: list[Loaded]) -> tuple[torch.Tensor | None, list[int], str]:
    """Stacks a batch: [B, 3, H, W] uint8, positions, and the first fault."""
    positions = [position for position, _, _ in loaded]
    images = [image for _, image, _ in loaded if image is not None]
    if len(images) < len(loaded):
        position, _, reason = next(entry for entry in loaded if entry[1] is None)
        return None, [position], reason
    batch = torch.from_numpy(np.stack(images))
    if get_worker_info() is not None:
        # torch would do it in a thread that loses a batch without a word where there is no room
        batch.share_memory_()  # type: ignore[no-untyped-call]
    return batch, positions, ""


def training_batches(
    source: Source,
    indices: Sequence[int],
    *,
    labels: Mapping[int, int] | None,
    preprocess: Preprocess,
    seed: int,
    epoch: int,
    first_step: int = 0,
    batch_size: int,
    crop_scale_min: float,
    flip: bool,
    strong_views: bool = False,
    view: int | None = None,
    view_seed: int | None = None,
    teacher_features: FeaturesOfViews | None = None,
    with_clean: bool = False,
    weights: Weights | None = None,
    n_workers: int | Literal["auto"] = 0,
    device: torch.device = _CPU,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[Batch]:
    """Yields one epoch's augmented batches from a step on.

    Of each batch a process reads its own share and no other image.

    Args:
        source: where the images are.
        indices: which of them to train on, each once an epoch, in random order.
        labels: position in the source -> label, or None.
        preprocess: the model's size, mean, std and interpolation.
        seed: the run's seed.
        epoch: from 1.
        first_step: where to start; `n_steps` gives nothing.
        batch_size: images a step; fewer only where there are not enough for one batch.
        crop_scale_min: smallest part of the image's area that a crop keeps.
        flip: mirror half of the images.
        strong_views: change colors and blur too.
        view: number of the crops and flips; None for those of this epoch's number.
        view_seed: what crops and flips are drawn from; None for `seed`, as the order is.
        teacher_features: gives what a teacher says of these crops, where that is stored.
        with_clean: give each image as evaluation sees it too.
        weights: gives what the images of a batch weigh, where they do not weigh the same.
        n_workers: processes that decode; 0 decodes here. The batches are the same.
        device: where the images are wanted.
        group: those that share the images of a batch, which are the same for any number.

    Raises:
        RecipeError: a batch has fewer images than there are processes.
        DataError: an image that was readable before is not any more.
        ResourceError: a worker died.
    """
    count = n_steps(len(indices), batch_size)
    view = epoch if view is None else view
    order = random_stream(seed, epoch, ORDER).permutation(np.asarray(indices, dtype=np.int64))
    batches: list[list[int]] = [
        order[step * batch_size :][:batch_size].tolist() for step in range(first_step, count)
    ]
    _check_shares(batches, group)
    shares = [
        [(position, view) for position in batch[group.shard(len(batch))]] for batch in batches
    ]
    own_seed = seed if view_seed is None else view_seed
    augment = Augmentation(own_seed, crop_scale_min, flip, strong_views)
    n_loaders = min(choose_n_workers(n_workers, sum(map(len, shares))), len(shares))
    loaded = _load(
        source, shares, preprocess, augment, n_loaders, device=device, with_clean=with_clean
    )
    for (images, _), positions in zip(loaded, batches, strict=True):
        clean = None
        if with_clean:
            images, clean = images.unbind(1)
        keys = tuple(source.items[position].key for position in positions)
        targets = None
        if labels is not None:
            targets = torch.tensor([labels[position] for position in positions])  # [B], int64
        features = None if teacher_features is None else teacher_features(positions, view)
        yield Batch(
            images=images,
            labels=targets,
            keys=keys,
            teacher_features=features,
            clean_images=clean,
            weights=None if weights is None else weights(positions),
            group=group,
            n_all=len(positions),
        )


def _check_shares(batches: Sequence[Sequence[int]], group: ProcessGroup) -> None:
    smallest = min(map(len, batches), default=group.world_size)
    if smallest < group.world_size:
        raise RecipeError(
            f"{group.world_size} processes share batches of {smallest} images; each needs one.\n"
            "  Raise optim.batch_size, or start fewer processes."
        )


def view_batches(
    source: Source,
    batches: Iterable[Sequence[Wanted]],
    *,
    preprocess: Preprocess,
    augment: Augmentation,
    n_workers: int,
    device: torch.device = _CPU,
) -> Iterator[torch.Tensor]:
    """Yields chosen views of chosen images, the same pixels that `training_batches` gives.

    Args:
        source: where the images are.
        batches: positions and views; drawn from as they are needed, a few ahead with workers.
        preprocess: the model's size, mean, std and interpolation.
        augment: what draws crops and flips.
        n_workers: processes that decode; 0 decodes here.
        device: where the images are wanted.

    Returns:
        [B, 3, H, W] float32 of each batch, in their order.

    Raises:
        DataError: an image that was readable before is not any more.
        ResourceError: a worker died.
    """
    for images, _ in _load(source, batches, preprocess, augment, n_workers, device=device):
        yield images


def evaluation_batches(
    source: Source,
    indices: Sequence[int],
    *,
    preprocess: Preprocess,
    batch_size: int,
    n_workers: int | Literal["auto"] = 0,
    device: torch.device = _CPU,
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Yields images in the order of `indices`, preprocessed as where they are deployed.

    Returns:
        [B, 3, H, W] float32 on `device`, and the images' positions in the source; the last batch
        may be short.

    Raises:
        DataError: an image that was readable before is not any more.
        ResourceError: a worker died.
    """
    batches = [
        [(position, 0) for position in indices[start : start + batch_size]]
        for start in range(0, len(indices), batch_size)
    ]
    n_loaders = choose_n_workers(n_workers, len(indices))
    n_loaders = min(n_loaders, len(batches))
    yield from _load(source, batches, preprocess, None, n_loaders, device=device)


def choose_n_workers(n_workers: int | Literal["auto"], n_images: int) -> int:
    """Gives the number of worker processes.

    `auto` leaves one core to the training process, and decodes in it where there are fewer images
    than the workers' start takes to pay off.
    """
    if n_workers != "auto":
        return n_workers
    return min(_MAX_WORKERS, max(0, n_cores() - 1)) if n_images >= _WORTH_WORKERS else 0


def n_cores() -> int:
    """Counts the cores for this process: of its container, shared among torchrun's processes."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)) // local_world_size())
    return max(1, (os.cpu_count() or 1) // local_world_size())


def _load(
    source: Source,
    batches: Iterable[Sequence[Wanted]],
    preprocess: Preprocess,
    augment: Augmentation | None,
    n_workers: int,
    *,
    device: torch.device,
    with_clean: bool = False,
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    loader: DataLoader[Any] = DataLoader(
        _Images(source, preprocess, augment, with_clean=with_clean),
        # Whatever can be gone through will do; torch's own annotation knows positions alone
        batch_sampler=cast(Any, batches),
        num_workers=n_workers,
        collate_fn=_collate,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context(__name__) if n_workers else None,
        pin_memory=device.type == "cuda",
        # The loader draws a number at its start; from here, not from the global generator.
        generator=torch.Generator(),
    )
    normalize_batch = _normalizer(preprocess, device)
    try:
        for pixels, positions, reason in loader:
            if pixels is None:
                raise DataError(
                    f"{source.items[positions[0]].key}: {reason}.\n"
                    "  It was readable when the run began; check the disk and start again."
                )
            yield normalize_batch(pixels), positions
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
    """Gives what normalizes a batch of pixels on a device.

    From [..., 3, H, W] uint8 it makes float32, equal to `runtime.preprocess.normalize` to the last
    bit: the same three steps in the same order.
    """

    def channels(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)

    # A tensor: by a number, a GPU would not divide but multiply with its reciprocal
    full, mean, std = channels(255), channels(*preprocess.mean), channels(*preprocess.std)

    def normalize_batch(pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.to(device, non_blocking=True).to(torch.float32)
        return images.div_(full).sub_(mean).div_(std)

    return normalize_batch
