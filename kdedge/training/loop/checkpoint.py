"""Checkpoints: everything that is needed to resume a run exactly.

Each is one safetensors file, named after its position in training: `e03-s00120` was written after
120 steps of epoch 3. Nested values of the state are JSON in the file's metadata, which also has a
SHA-256 over JSON and tensors. The two newest checkpoints are kept.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdedge.errors import DataError
from kdedge.tensor_file import read_tensors, write_tensors

_NAME = re.compile(r"e(\d+)-s(\d+)\.safetensors")
_N_KEPT = 2
_FORMAT = "kdedge-checkpoint-1"


@dataclass(frozen=True)
class TrainingState:
    """State of a run between two steps.

    Attributes:
        epoch: the current epoch, from 1; one past the last when training is complete.
        step: number of finished steps in that epoch.
        module: state dict of the method's module.
        optimizer: the optimizer's state dict.
        scaler: the loss scaler's state dict.
        rng: the state returned by `capture_rng`.
        average: partial sum of the averaged parameters, float64.
        moving_average: the state returned by `MovingAverage.state_dict`.
        best: the state returned by `BestWeights.state_dict`.
        record: plain values, such as losses and seconds.
    """

    epoch: int
    step: int
    module: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rng: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)
    moving_average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def capture_rng(device: torch.device) -> dict[str, Any]:
    """State of the global random generators of Python, numpy, torch and a CUDA device."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: Mapping[str, Any], device: torch.device) -> None:
    """Restores the global random generators to the state returned by `capture_rng`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def rng_kept(device: torch.device) -> Iterator[None]:
    """Context manager that restores the global random generators on exit.

    Validation and trial steps must not change training, even if a method draws random numbers.
    """
    before = capture_rng(device)
    try:
        yield
    finally:
        restore_rng(before, device)


def list_checkpoints(folder: Path) -> list[Path]:
    """A folder's checkpoints, the latest position in training first."""
    matches = {path: match for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))}
    return sorted(matches, key=lambda path: tuple(map(int, matches[path].groups())), reverse=True)


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Writes a checkpoint, then deletes all but the two newest, and half-written files.

    Raises:
        ResourceError: the disk is full; existing checkpoints are kept.
    """
    path = folder / f"e{state.epoch:02d}-s{state.step:05d}.safetensors"
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(vars(state), "", tensors))
    write_tensors(path, tensors, {"format": _FORMAT, "state": text})
    _delete_old(folder)
    return path


def _delete_old(folder: Path) -> None:
    """Deletes all but the newest checkpoints, and half-written files."""
    for old in list_checkpoints(folder)[_N_KEPT:]:
        old.unlink(missing_ok=True)
    for partial in folder.glob(".e*-s*.safetensors.*"):
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> TrainingState:
    """Reads a checkpoint onto the CPU.

    Raises:
        DataError: the file has changed since it was written, or holds no training state.
    """
    stored, facts = read_tensors(path)
    if facts.get("format") != _FORMAT:
        raise DataError(f"{path} is not a checkpoint.")
    tensors = {name: tensor.clone() for name, tensor in stored.items()}  # not views of the file
    try:
        return TrainingState(**_unpack(json.loads(facts["state"]), tensors))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"{path} does not hold a training state: {error}.") from error


def load_newest(folder: Path) -> TrainingState | None:
    """Reads the newest checkpoint; None if the folder has no checkpoints.

    Half-written files of a killed process are deleted.

    Raises:
        DataError: the newest checkpoint is damaged.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    try:
        state = load_checkpoint(checkpoints[0])
    except DataError as error:
        before = "the checkpoint before it" if len(checkpoints) > 1 else "the start"
        raise DataError(f"{error}\n  Delete it to train this run on from {before}.") from error
    _delete_old(folder)
    return state


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Converts nested values to JSON, and tensors to references to `tensors`.

    A reference, and a value of a type that JSON lacks, becomes a list that begins with the type's
    name. So lists begin with "list".
    """
    if isinstance(value, Tensor):
        # Copied, since safetensors refuses tensors that share memory
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if isinstance(value, Mapping):
        pairs = [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        return ["dict", *pairs]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, *(_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value))]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold {name}: {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_pack`."""
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "tensor":
        return tensors[items[0]]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in items}
    unpacked = [_unpack(item, tensors) for item in items]
    if kind not in ("list", "tuple"):
        raise ValueError(f"a value of the kind {kind!r:.60}")
    return tuple(unpacked) if kind == "tuple" else unpacked
