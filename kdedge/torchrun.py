"""The processes that torchrun starts, by their environment; without torchrun there is one."""

from __future__ import annotations

import os


def world_size() -> int:
    """Number of processes, on all machines."""
    return _number("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """This process's number, from 0; only the process with 0 prints and writes."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """Number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its machine, from 0, which is also the number of its GPU."""
    return _number("LOCAL_RANK", 0)


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))
