"""Batches whose contents depend on the seed, the epoch and the step only.

Order and augmentation come from counter-based random streams (`loading/views.py`). So training can
resume at any step, with any number of workers, and gets the same batches to the last bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, tee
from typing import Literal

import numpy as np
import torch

from kdedge.config.optim_spec import OptimSettings
from kdedge.data.images import Images
from kdedge.data.sources import ImageSource
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import RecipeError
from kdedge.loading.batch import Batch, FeaturesOfViews, ImageWeights
from kdedge.loading.decoding import PlannedImage, Preparation, choose_n_workers, load_images
from kdedge.loading.views import ORDER, SECOND_SET, random_stream
from kdedge.runtime.preprocess import Preprocess

_CPU = torch.device("cpu")
_CPU_IMAGES_PER_PASS = 8


def n_steps(n_images: int, batch_size: int) -> int:
    """Counts the steps of an epoch: a last smaller batch is dropped, unless it is the only one."""
    return max(1, n_images // batch_size)


def step_sizes(images: Images, labeled: Images | None, optim: OptimSettings) -> tuple[int, int]:
    """Counts the images and the labeled images of a step, in all processes."""
    n_labeled = 0 if labeled is None else optim.labeled_batch_size or optim.batch_size
    return min(optim.batch_size, len(images.indices)), n_labeled


def training_batches(
    images: Images,
    preparation: Preparation,
    optim: OptimSettings,
    *,
    seed: int,
    epoch: int = 1,
    first_step: int = 0,
    n_views: int | None = None,
    teacher_features: FeaturesOfViews | None = None,
    weights: ImageWeights | None = None,
    labeled: Images | None = None,
    device: torch.device = _CPU,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Generator[Batch, None, None]:
    """Yields the augmented batches from a step of an epoch on, to the end of the last epoch.

    The data workers stay for all epochs, and decode images of the next epoch before the last step
    of an epoch is done. Each process reads only its own shard of a batch.

    Args:
        images: the images of an epoch, each used once, in random order.
        preparation: how each image is augmented.
        optim: number of epochs, images per step and data workers.
        seed: seed of the order of the images.
        epoch: the first epoch, from 1.
        first_step: its first step, from 0; at `n_steps` the epoch has no batch.
        n_views: number of views of an image, which the epochs use in turn; None for a new view in
            each epoch.
        teacher_features: returns stored features of a teacher; None if none are stored.
        weights: returns the weights of a batch's images; None for equal weights.
        labeled: additional images with labels, a fixed number per step, as `Batch.labeled`. They
            repeat, in a new order and with new views in each pass.
        device: where the images are needed.
        group: the processes that share each batch.

    Raises:
        RecipeError: a batch has fewer images than there are processes.
        DataError: an image is no longer readable.
        ResourceError: a worker died.
    """
    sizes = step_sizes(images, labeled, optim)
    for size in filter(None, sizes):
        check_shards(size, group.world_size)
    # The loader reads the plan a few steps ahead
    plan, loader_plan = tee(
        _planned_steps(images, labeled, sizes[1], optim, seed, epoch, first_step, n_views)
    )
    shards = ([*group.shard_of(step), *group.shard_of(others)] for step, others in loader_plan)
    n_per_epoch = n_steps(len(images.indices), optim.batch_size)
    n_batches = (optim.epochs + 1 - epoch) * n_per_epoch - first_step
    n_loaders = choose_n_workers(optim.n_workers, n_batches * sum(sizes) // group.world_size)
    loaded = load_images(
        [images.source] if labeled is None else [images.source, labeled.source],
        shards,
        preparation,
        min(n_loaders, n_batches),
        batch_size=sum(len(group.shard_of(range(size))) for size in sizes),
        device=device,
    )
    for pixels, (step, labeled_step) in zip(loaded, plan, strict=True):
        n_in_shard = len(group.shard_of(step))
        batch = _make_batch(images, pixels[:n_in_shard], step, preparation, group)
        if labeled is not None:
            others = _make_batch(labeled, pixels[n_in_shard:], labeled_step, preparation, group)
            batch = replace(batch, labeled=others)
        positions = [position for _, position, _ in step]
        yield replace(
            batch,
            teacher_features=teacher_features and teacher_features(positions, step[0][2]),
            weights=weights and weights(positions),
        )


def _planned_steps(
    images: Images,
    labeled: Images | None,
    n_labeled: int,
    optim: OptimSettings,
    seed: int,
    first_epoch: int,
    first_step: int,
    n_views: int | None,
) -> Iterator[tuple[list[PlannedImage], list[PlannedImage]]]:
    """Yields the images and the labeled images of each step; each epoch has its own order."""
    indices = np.asarray(images.indices, np.int64)
    n_per_epoch = n_steps(len(indices), optim.batch_size)
    n_before = ((first_epoch - 1) * n_per_epoch + first_step) * n_labeled
    labeled_stream = iter(()) if labeled is None else _labeled_stream(labeled, seed, n_before)
    for epoch in range(first_epoch, optim.epochs + 1):
        order = random_stream(seed, epoch, ORDER).permutation(indices)
        view = epoch if n_views is None else (epoch - 1) % n_views + 1
        for step in range(first_step, n_per_epoch):
            positions = order[step * optim.batch_size :][: optim.batch_size].tolist()
            planned = [(0, position, view) for position in positions]
            yield planned, list(islice(labeled_stream, n_labeled))
        first_step = 0


def _labeled_stream(labeled: Images, seed: int, n_before: int) -> Iterator[PlannedImage]:
    """Yields labeled images without end, after the first `n_before` of the training.

    The stream concatenates passes without end. Pass p (from 1) has its own order and views, so a
    batch can hold the end of one pass and the start of the next.
    """
    indices = np.asarray(labeled.indices, dtype=np.int64)
    done, n_before = divmod(n_before, len(indices))
    for number in count(done + 1):
        order = random_stream(seed + SECOND_SET, number, ORDER).permutation(indices)
        yield from ((1, position, number) for position in order.tolist()[n_before:])
        n_before = 0


def _make_batch(
    images: Images,
    pixels: torch.Tensor,
    planned: Sequence[PlannedImage],
    preparation: Preparation,
    group: ProcessGroup,
) -> Batch:
    """A batch from this rank's pixels and the images of all ranks."""
    positions = [position for _, position, _ in planned]
    clean = None
    if preparation.with_clean:
        pixels, clean = pixels.unbind(1)
    labels = images.train_labels
    return Batch(
        images=pixels,
        labels=None if labels is None else torch.tensor([labels[i] for i in positions]),
        keys=tuple(images.source.items[position].key for position in positions),
        clean_images=clean,
        group=group,
        n_all=len(positions),
    )


def check_shards(n_images: int, n_processes: int) -> None:
    """Checks that a batch has at least one image for every process.

    Raises:
        RecipeError: the batch has fewer images.
    """
    if n_images < n_processes:
        raise RecipeError(
            f"{n_processes} processes share batches of {n_images} images, and each needs at"
            " least one.\n"
            "  Raise optim.batch_size, or start fewer processes."
        )


def images_per_pass(batch_size: int, device: torch.device) -> int:
    """Number of images that a model gets at a time if no gradients are needed.

    On a CPU, the tensors of an EfficientNet do not fit into the caches with 32 images. With 8
    images it is 1.5 to 2 times as fast, and takes half the memory.
    """
    return min(batch_size, _CPU_IMAGES_PER_PASS) if device.type == "cpu" else batch_size


def evaluation_batches(
    source: ImageSource,
    indices: Sequence[int],
    *,
    preprocess: Preprocess,
    batch_size: int,
    n_workers: int | Literal["auto"] = 0,
    device: torch.device = _CPU,
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Yields images in the order of `indices`, preprocessed as on the device.

    Args:
        source: where the images are.
        indices: positions in the source.
        preprocess: the model's size, mean, standard deviation and interpolation.
        batch_size: size of the largest batch; on a CPU batches are smaller (`images_per_pass`).
        n_workers: processes that decode; 0 decodes in this process.
        device: where the images are needed.

    Returns:
        [B, 3, H, W] float32 on `device`, and the images' positions in the source; the last batch
        may be short.

    Raises:
        DataError: an image is no longer readable.
        ResourceError: a worker died.
    """
    batch_size = images_per_pass(batch_size, device)
    batches = [
        list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)
    ]
    planned = [[(0, position, 0) for position in batch] for batch in batches]
    n_loaders = min(choose_n_workers(n_workers, len(indices)), len(batches))
    preparation = Preparation(preprocess)
    size = min(batch_size, len(indices))
    loaded = load_images([source], planned, preparation, n_loaders, batch_size=size, device=device)
    yield from zip(loaded, batches, strict=True)
