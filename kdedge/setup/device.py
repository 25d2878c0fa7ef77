"""The device that a command computes on."""

from __future__ import annotations

import logging

import torch

from kdedge.distributed import local_rank, local_world_size
from kdedge.errors import RecipeError, SetupError

log = logging.getLogger(__name__)


def choose_device(name: str | None) -> torch.device:
    """The device by name; CUDA where there is one and nothing is asked for.

    Of several processes that torchrun started on a machine each has a GPU of its own.

    Raises:
        SetupError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"--device {name} is no device.\n  Use cpu, cuda or cuda:0.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            f"--device {name}: PyTorch finds no CUDA device here.\n"
            "  Use --device cpu, or see `kdedge doctor`."
        )
    if device.type not in {"cpu", "cuda"}:
        raise SetupError(f"--device {name}: kdedge trains on cpu and cuda.")
    if device.type == "cuda" and local_world_size() > 1:
        device = _own_gpu(device)
    # cuDNN's default would run the patch convolution of an fp32 run in TF32.
    torch.backends.cudnn.allow_tf32 = False
    return device


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process among those on this machine.

    Raises:
        SetupError: there are fewer GPUs than processes, or all are told to use one.
    """
    n_gpus = torch.cuda.device_count()
    if device.index is not None or local_world_size() > n_gpus:
        raise SetupError(
            f"{local_world_size()} processes on this machine need a GPU each, and there are"
            f" {1 if device.index is not None else n_gpus} to use.\n"
            "  Start fewer with --nproc-per-node, or give --device cuda without a number."
        )
    return torch.device("cuda", local_rank())
