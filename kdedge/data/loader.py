"""Batches whose contents depend on the seed, the epoch and the step only.

Order and augmentation come from counter-based random streams (`data/views.py`). So training can
resume at any step, with any number of workers, and gets the same batches to the last bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, repeat, tee
from typing import Literal

import numpy as np
import torch

from kdedge.data.batch import Batch, FeaturesOfViews, ImageWeights
from kdedge.data.decoding import PlannedImage, Preparation, choose_n_workers, load_images
from kdedge.data.images import Images
from kdedge.data.sources import ImageSource
from kdedge.data.views import ORDER, SECOND_SET, random_stream
from kdedge.distributed import ProcessGroup
from kdedge.errors import RecipeError
from kdedge.runtime.preprocess import Preprocess

_CPU = torch.device("cpu")
_CPU_IMAGES_PER_PASS = 8


def n_steps(n_images: int, batch_size: int) -> int:
    """Counts the steps of an epoch: a last smaller batch is dropped, unless it is the only one."""
    return max(1, n_images // batch_size)


def training_batches(
    images: Images,
    preparation: Preparation,
    *,
    seed: int,
    epochs: Sequence[int],
    batch_size: int,
    first_step: int,
    n_views: int | None,
    teacher_features: FeaturesOfViews | None,
    weights: ImageWeights | None,
    labeled: Images | None,
    labeled_batch_size: int,
    n_workers: int | Literal["auto"],
    device: torch.device,
    group: ProcessGroup,
) -> Generator[Batch, None, None]:
    """Yields the augmented batches of successive epochs, from a step of the first one on.

    The data workers stay for all epochs, and decode images of the next epoch before the last step
    of an epoch is done. Each process reads only its own shard of a batch.

    Args:
        images: the images of an epoch, each used once, in random order.
        preparation: how each image is augmented.
        seed: seed of the order of the images.
        epochs: successive numbers, from 1.
        batch_size: images per step; fewer only if there are not enough for one batch.
        first_step: first step of the first epoch, from 0; at `n_steps` the epoch has no batch.
        n_views: number of views of an image, which the epochs use in turn; None for a new view in
            each epoch.
        teacher_features: returns stored features of a teacher; None if none are stored.
        weights: returns the weights of a batch's images; None for equal weights.
        labeled: additional images with labels, a fixed number per step, as `Batch.labeled`. They
            repeat, in a new order and with new views in each pass.
        labeled_batch_size: number of labeled images per step.
        n_workers: processes that decode; 0 decodes in this process.
        device: where the images are needed.
        group: the processes that share each batch.

    Raises:
        RecipeError: a batch has fewer images than there are processes.
        DataError: an image is no longer readable.
        ResourceError: a worker died.
    """
    n_labeled = 0 if labeled is None else labeled_batch_size
    sizes = [min(batch_size, len(images.indices)), n_labeled]
    for size in sizes:
        check_shares(size or group.world_size, group.world_size)
    n_per_epoch = n_steps(len(images.indices), batch_size)
    steps = _planned_steps(images, seed, epochs, batch_size, first_step, n_views)
    labeled_steps: Iterator[list[PlannedImage]] = repeat([])
    if labeled is not None:
        n_before = ((epochs[0] - 1) * n_per_epoch + first_step) * n_labeled
        stream = _labeled_stream(labeled, seed, n_before)
        labeled_steps = (list(islice(stream, n_labeled)) for _ in count())
    plan, loader_plan = tee(zip(steps, labeled_steps, strict=False))
    shards = ([*group.shard_of(step), *group.shard_of(others)] for step, others in loader_plan)
    n_batches = len(epochs) * n_per_epoch - first_step
    n_loaders = choose_n_workers(n_workers, n_batches * sum(sizes) // group.world_size)
    loaded = load_images(
        [images.source] if labeled is None else [images.source, labeled.source],
        shards,
        preparation,
        min(n_loaders, n_batches),
        batch_size=sum(len(group.shard_of(range(size))) for size in sizes),
        device=device,
    )
    for pixels, (step, labeled_step) in zip(loaded, plan, strict=True):
        n_share = len(group.shard_of(step))
        batch = _make_batch(images, pixels[:n_share], step, preparation, group)
        if labeled is not None:
            others = _make_batch(labeled, pixels[n_share:], labeled_step, preparation, group)
            batch = replace(batch, labeled=others)
        positions = [position for _, position, _ in step]
        yield replace(
            batch,
            teacher_features=teacher_features and teacher_features(positions, step[0][2]),
            weights=weights and weights(positions),
        )


def _planned_steps(
    images: Images,
    seed: int,
    epochs: Sequence[int],
    batch_size: int,
    first_step: int,
    n_views: int | None,
) -> Iterator[list[PlannedImage]]:
    """Yields the images of each step, in an order that is drawn for each epoch."""
    indices = np.asarray(images.indices, np.int64)
    for epoch in epochs:
        order = random_stream(seed, epoch, ORDER).permutation(indices)
        view = epoch if n_views is None else (epoch - 1) % n_views + 1
        for step in range(first_step, n_steps(len(indices), batch_size)):
            positions = order[step * batch_size :][:batch_size].tolist()
            yield [(0, position, view) for position in positions]
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


def check_shares(n_images: int, n_processes: int) -> None:
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
    preparation, size = Preparation(preprocess), min(batch_size, len(indices))
    loaded = load_images([source], planned, preparation, n_loaders, batch_size=size, device=device)
    yield from zip(loaded, batches, strict=True)
