"""Checkpoints: everything a run needs to go on as if it had never stopped.

One safetensors file each, named after the place where training goes on: `e03-s00120` has 120 steps
of epoch 3 behind it. The state's nested values lie as JSON in the file's metadata, its tensors
beside them, and a SHA-256 over both. The two newest are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdedge.errors import DataError, RecipeError
from kdedge.files import write_atomic

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"e(\d+)-s(\d+)\.safetensors")
_N_KEPT = 2
_FORMAT = "kdedge-checkpoint-1"


class DamagedCheckpoint(DataError):  # noqa: N818 - the name says what is wrong
    """A checkpoint file is cut off, changed or not one of ours."""


@dataclass(frozen=True)
class TrainingState:
    """A run between two steps.

    Attributes:
        epoch: the epoch that goes on, from 1; one past the last when training is complete.
        step: steps done in that epoch.
        module: state dict of the method's module.
        optimizer: the optimizer's state dict.
        scaler: the loss scaler's state dict.
        rng: what `capture_rng` gave.
        average: partial sum of the averaged parameters, float64.
        moving_average: what `MovingAverage.state_dict` gave.
        best: what `BestWeights.state_dict` gave.
        record: plain values: losses, seconds.
        identity: the settings the numbers depend on; resuming needs the same ones.
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
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> tuple[float, ...]:
        """Loss so far in the epoch, loss of the epoch before, seconds.

        Raises:
            ValueError: one is not finite.
        """
        found = tuple(float(self.record[name]) for name in ("loss_sum", "final_loss", "seconds"))
        if not all(map(math.isfinite, found)):
            raise ValueError(f"its figures are {found}")
        return found


def capture_rng(device: torch.device | None = None) -> dict[str, Any]:
    """Gives the state of the global generators: Python, numpy, torch, and a CUDA device's."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            gauss,
        ),
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Puts the global generators back to what `capture_rng` gave."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def rng_kept(device: torch.device | None = None) -> Iterator[None]:
    """Context that leaves the global generators as it found them.

    Validation and trial steps must not change what is learned, whatever a method draws in them.
    """
    before = capture_rng(device)
    try:
        yield
    finally:
        restore_rng(before, device)


def checkpoint_path(folder: Path, *, epoch: int, step: int) -> Path:
    """Gives the file that belongs to a place in training."""
    return folder / f"e{epoch:02d}-s{step:05d}.safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """Gives a folder's checkpoints, the furthest in training first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), int(match[2]), path))
    return [path for _, _, path in sorted(found, reverse=True)]


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Writes a checkpoint, then deletes all but the two newest and what kills left behind.

    Raises:
        ResourceError: the disk is full; the checkpoints that were there stay.
    """
    path = checkpoint_path(folder, epoch=state.epoch, step=state.step)
    write_atomic(path, _encode(state))
    _tidy(folder)
    return path


def _tidy(folder: Path) -> None:
    for old in list_checkpoints(folder)[_N_KEPT:]:
        old.unlink(missing_ok=True)
    for cut_off in folder.glob(".e*-s*.safetensors.*"):
        cut_off.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> TrainingState:
    """Reads a checkpoint onto the CPU.

    Raises:
        DamagedCheckpoint: its bytes are not the ones that were written, or are no training state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what safetensors gives is a view of the file
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is not a whole checkpoint: {error}.") from error
    text = metadata.get("state", "")
    if metadata.get("format") != _FORMAT or metadata.get("sha256") != _digest(text, tensors):
        raise DamagedCheckpoint(f"{path} is damaged: its contents do not match their SHA-256.")
    try:
        return _state(_unpack(json.loads(text), tensors))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path} does not hold a training state: {error}.") from error


def _state(values: Any) -> TrainingState:
    """The state of unpacked values.

    Raises:
        ValueError: they are none.
    """
    names = [entry.name for entry in fields(TrainingState)]
    kinds = {name: int if name in ("epoch", "step") else dict for name in names}
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise ValueError(f"expected {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise ValueError(f"{name} is {values[name]!r:.60}")
    if values["epoch"] < 1 or values["step"] < 0:
        raise ValueError(f"it is of epoch {values['epoch']}, step {values['step']}")
    return TrainingState(**values)


def load_newest(folder: Path) -> TrainingState | None:
    """Reads the newest checkpoint that is whole; None where the folder has none at all.

    A damaged one is set aside under the name `*.damaged`, with a warning, so that it does not
    count among the newest. What a kill in the middle of saving left behind is deleted.

    Raises:
        DataError: there are checkpoints, and all are damaged.
    """
    found = list_checkpoints(folder)
    for path in found:
        try:
            state = load_checkpoint(path)
        except DamagedCheckpoint as error:
            _LOG.warning("%s Going back to the checkpoint before it.", error)
            path.replace(path.with_name(path.name + ".damaged"))
        else:
            _tidy(folder)
            return state
    if found or any(folder.glob("*.damaged")):
        raise DataError(
            f"All checkpoints in {folder} are damaged.\n"
            "  Delete that folder's contents to train this run again from its beginning."
        )
    return None


def check_identity(state: TrainingState, identity: Mapping[str, Any], *, where: Path) -> None:
    """Makes sure that a run goes on under the settings it began with.

    Raises:
        RecipeError: it would not; the message names each setting that differs.
    """
    now = json.loads(json.dumps(identity))
    differing = [
        f"{key}: {state.identity.get(key, 'not set')} before, {now.get(key, 'not set')} now"
        for key in sorted(state.identity.keys() | now.keys())
        if state.identity.get(key) != now.get(key)
    ]
    if differing:
        raise RecipeError(
            f"The run in {where} cannot go on: its settings differ from those it began with.\n"
            f"  {'; '.join(differing)}\n"
            "  Go on with the recipe.yaml in that folder, or start a new run."
        )


def _encode(state: TrainingState) -> bytes:
    tensors: dict[str, Tensor] = {}
    values = {entry.name: getattr(state, entry.name) for entry in fields(state)}
    text = json.dumps(_pack(values, "", tensors))
    metadata = {"format": _FORMAT, "state": text, "sha256": _digest(text, tensors)}
    return save(tensors, metadata=metadata)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Turns nested values into JSON, tensors into references to `tensors`.

    Each reference and each kind that JSON does not have is a list that begins with its name, so
    plain lists begin with "list".
    """
    if isinstance(value, Tensor):
        # A copy of its own: safetensors refuses tensors that share memory
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
