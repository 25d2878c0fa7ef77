"""The device that a command computes on."""

from __future__ import annotations

import logging

import torch

from kdedge.distributed import local_rank
from kdedge.errors import RecipeError, SetupError
from kdedge.runtime.threads import local_world_size

log = logging.getLogger(__name__)


def choose_device(name: str | None) -> torch.device:
    """Returns the device of that name; by default CUDA if available, else the CPU.

    A GPU gets its number, which older versions of torch need, and becomes the current one. Each
    process that torchrun started on a machine gets its own.

    Raises:
        SetupError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(
            f"--device {name} is not a device.\n  Use cpu, cuda or cuda:0."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            f"--device {name}: PyTorch finds no CUDA device on this machine.\n"
            "  Use --device cpu, or run `kdedge doctor` to see why."
        )
    if device.type not in {"cpu", "cuda"}:
        raise SetupError(f"--device {name} is not supported.\n  Use cpu or cuda.")
    if device.type == "cuda":
        n_gpus = torch.cuda.device_count()
        if device.index is not None and device.index >= n_gpus:
            known = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(n_gpus))
            raise SetupError(
                f"--device {name}: there is no such GPU on this machine.\n  It has {known}."
            )
        if local_world_size() > 1:
            device = _own_gpu(device)
        device = torch.device("cuda", device.index or 0)
        # Events, peaks and engines name no device: they use the current one
        torch.cuda.set_device(device)
    # cuDNN's default would run the patch convolution of an fp32 run in TF32.
    torch.backends.cudnn.allow_tf32 = False
    return device


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process on this machine.

    Raises:
        SetupError: there are fewer GPUs than processes, or all should use the same one.
    """
    n_gpus = torch.cuda.device_count()
    if device.index is not None or local_world_size() > n_gpus:
        raise SetupError(
            f"{local_world_size()} processes on this machine need one GPU each, and they can use"
            f" only {1 if device.index is not None else n_gpus}.\n"
            "  Start fewer with `--nproc-per-node`, or give --device cuda without a number."
        )
    return torch.device("cuda", local_rank())
