"""The processes that train one model together, and how they exchange tensors.

Each process runs the image encoder on its shard of the batch. The features are gathered, and every
later step (projector, batch norm, loss) runs in every process on the full batch. Batch norm and
losses that compare images thus see the same batch as in one process, and the result is the same up
to the order of sums. This needs no synchronized batch norm, which torch has for GPUs only, and
little traffic: features one way, gradients of trained tensors the other.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kdedge import torchrun
from kdedge.errors import ResourceError, is_out_of_memory
from kdedge.messages import option, same_call

_T = TypeVar("_T")

# The other ranks wait while rank 0 validates and measures; a process that dies is noticed at once
_LONGEST_WAIT = datetime.timedelta(days=1)


class ProcessGroup:
    """The processes that train one model together, seen from one of them.

    Attributes:
        rank: this process's number, from 0.
        world_size: number of processes.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def shard(self, n_rows: int) -> slice:
        """The rows of a batch that this rank computes; shards differ by at most one row."""
        return slice(
            self.rank * n_rows // self.world_size, (self.rank + 1) * n_rows // self.world_size
        )

    def shard_of(self, rows: Sequence[_T]) -> Sequence[_T]:
        """This rank's part of the rows of a batch; see `shard`."""
        return rows[self.shard(len(rows))]

    def gather(self, rows: Tensor, n_rows: int) -> Tensor:
        """Concatenates the shards of all processes to [B, ...], with gradients; equal on all ranks.

        The gradient of this rank's shard is multiplied by the world size. `all_reduce_mean` then
        sums the shards' parts of a gradient, and does not change a gradient that every rank
        computed from the full batch.

        Raises:
            ResourceError: another process has ended.
        """
        if self.world_size == 1:
            return rows
        batch: Tensor = _Gather.apply(rows, n_rows, self)  # type: ignore[no-untyped-call, unused-ignore]  # typed since torch 2.15
        return batch

    def all_reduce_mean(self, gradients: Sequence[Tensor]) -> None:
        """Replaces gradients by their means over all processes.

        Raises:
            ResourceError: another process has ended.
        """
        if self.world_size == 1:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.all_reduce_sum(flat)
        flat /= self.world_size
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def all_reduce_max(self, value: int) -> int:
        """The maximum over all processes."""
        if self.world_size == 1:
            return value
        values = torch.tensor([value])
        with _explain_lost_process():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def all_gather(self, value: _T) -> list[_T]:
        """The values of all processes, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _explain_lost_process():
            dist.all_gather_object(values, value)
        return values

    def on_rank0(self, make: Callable[[], _T]) -> _T:
        """Runs a function on rank 0 alone and broadcasts its result."""
        values: list[Any] = [make() if self.is_rank0 else None]
        if self.world_size > 1:
            with _explain_lost_process():
                dist.broadcast_object_list(values, src=0)
        value: _T = values[0]
        return value

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Adds up the processes' tensors in place."""
        if self.world_size > 1:
            with _explain_lost_process():
                dist.all_reduce(tensor)


SINGLE_PROCESS = ProcessGroup()
"""A training in one process."""


class _Gather(torch.autograd.Function):
    """Concatenates the rows of all processes, in every process; see `ProcessGroup.gather`.

    The gradient of a row goes back to the process that computed it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, n_rows: int, group: ProcessGroup) -> Tensor:
        shard = group.shard(n_rows)
        ctx.shard, ctx.world_size = shard, group.world_size
        # Sums with zeros are exact, and every backend has float32
        batch = rows.new_zeros(n_rows, *rows.shape[1:], dtype=torch.float32)
        batch[shard] = rows.float()
        group.all_reduce_sum(batch)
        return batch.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.world_size * gradient[ctx.shard], None, None


@contextlib.contextmanager
def _explain_lost_process() -> Iterator[None]:
    """Context that replaces torch's error about a closed connection: another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        # torchrun sends SIGTERM to the other processes, which must not cut off the message
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        raise ResourceError(
            f"Another of the {dist.get_world_size()} processes of this training has ended, and the"
            " others cannot go on without it.\n"
            f"  Its own message says why. {same_call()} with {option('--resume', 'resume=True')} to"
            " continue from the last checkpoint."
        ) from error


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """Context with the group of the processes that torchrun started.

    Ranks other than 0 log warnings and errors only. If torchrun started no process or only one,
    the group is `SINGLE_PROCESS`.

    Args:
        device: the device on which this process trains; a GPU is already torch's current device.
    """
    size = torchrun.world_size()
    if size == 1:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # Import this before the group exists. Default arguments of this module would else keep the
    # group until Python exits, when gloo's threads can abort the process
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=_LONGEST_WAIT)
    group = ProcessGroup(dist.get_rank(), size)
    logger = logging.getLogger("kdedge")
    level = logger.level
    if not group.is_rank0:
        logger.setLevel(logging.WARNING)
    try:
        yield group
    finally:
        logger.setLevel(level)
    # Not after an error, when other processes may be in the middle of an exchange
    dist.destroy_process_group()
