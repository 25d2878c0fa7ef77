"""Stored class vectors and text features, each with the hash of its provenance."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdedge.clip.tensor_file import encode_tensors
from kdedge.errors import DataError, InUseError, ResourceError, ShapeError
from kdedge.files import explain_os_error, locked, sha256_json, write_atomic
from kdedge.records import parse_record

log = logging.getLogger(__name__)

_UNIT_LENGTH_TOLERANCE = 1e-3
_REMEDY = "Train or import again, which makes a new run, or restore the file from a backup."
_LOCK_WAIT_S = 60.0
"""Longer than a chunk of class texts takes on a slow machine."""


@dataclass(frozen=True, eq=False)
class ClassVectors:
    """A teacher's text features, stored and frozen.

    Attributes:
        vectors: [C, D], float32, in class-list order; of unit length, or shorter if they are
            averages; [C, 0] for a method whose class texts depend on the image.
        class_names: the C names.
        provenance: provenance hash: of the weights, prompts and texts behind them.
    """

    vectors: Tensor
    class_names: tuple[str, ...]
    provenance: str

    def __post_init__(self) -> None:
        """Checks that there is one vector per name, of at most unit length."""
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.class_names):
            raise ShapeError(
                f"There are {len(self.class_names)} class names, but the class vectors have shape"
                f" {list(self.vectors.shape)}; expected one vector per name."
            )
        if self.vectors.shape[1] == 0:
            return
        lengths = self.vectors.norm(dim=-1)
        if not bool(((lengths > 0) & (lengths < 1 + _UNIT_LENGTH_TOLERANCE)).all()):
            raise DataError(
                f"The class vectors have lengths from {float(lengths.min()):.4g} to"
                f" {float(lengths.max()):.4g}, expected at most 1: the file or its model is wrong."
            )

    def select(self, class_names: Sequence[str]) -> ClassVectors:
        """Selects the vectors of some names, in the order of these names.

        Raises:
            DataError: a name has no stored vector.
        """
        position = {name: index for index, name in enumerate(self.class_names)}
        unknown = [name for name in class_names if name not in position]
        if unknown:
            raise DataError(
                f"{len(unknown)} class names have no stored vector, for example {unknown[0]!r}.\n"
                f"  The file has vectors of {len(self.class_names)} names, for example"
                f" {self.class_names[0]!r}. Use exactly these names, or train again with the new"
                " class list."
            )
        rows = torch.tensor([position[name] for name in class_names])
        return ClassVectors(self.vectors[rows], tuple(class_names), self.provenance)

    def save(self, path: Path) -> None:
        """Writes one safetensors file, names and hashes in its metadata."""
        vectors = self.vectors.detach().float().cpu().contiguous()
        metadata = {
            "class_names": json.dumps(list(self.class_names), ensure_ascii=False),
            "made_by": self.provenance,
            "sha256": _sha256(vectors),
            "sha256_names": sha256_json(list(self.class_names)),
        }
        write_atomic(path, encode_tensors({"class_vectors": vectors}, metadata))


def _sha256(features: Tensor) -> str:
    """SHA-256 of the float32 bytes: safetensors itself does not notice a changed value."""
    return hashlib.sha256(features.float().contiguous().numpy().tobytes()).hexdigest()


def load_class_vectors(path: Path) -> ClassVectors:
    """Reads a file of `ClassVectors.save`.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            vectors = file.get_tensor("class_vectors")
        texts, provenance, sha256, sha256_names = (
            metadata[key] for key in ("class_names", "made_by", "sha256", "sha256_names")
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} does not hold class vectors: {error}.\n"
            f"  The file is missing or damaged. {_REMEDY}"
        ) from error
    where = f"{path}: class_names of its metadata"
    names = parse_record(tuple[str, ...], texts, where=where, remedy=_REMEDY)
    if vectors.dtype != torch.float32:
        raise DataError(
            f"{path}: its class vectors are {vectors.dtype}; expected torch.float32.\n  {_REMEDY}"
        )
    if _sha256(vectors) != sha256:
        raise DataError(
            f"{path} is damaged: its class vectors have changed since they were written.\n"
            f"  {_REMEDY}"
        )
    if sha256_names != sha256_json(list(names)):
        raise DataError(
            f"{path} is damaged: its class names have changed since they were written.\n  {_REMEDY}"
        )
    try:
        return ClassVectors(vectors, names, provenance)
    except (DataError, ShapeError) as error:
        raise DataError(f"{path}: {error}\n  {_REMEDY}") from error


class TextFeatureCache:
    """Features of frozen texts, computed once per set of weights.

    Args:
        folder: keeps them between runs; None keeps them for this process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[str, Tensor] = {}

    def get(self, encoder: str, texts: Sequence[str], compute: Callable[[], Tensor]) -> Tensor:
        """The [T, D] float32 features of these texts; `encoder` identifies the encoder."""
        key = sha256_json([encoder, list(texts)])
        if key not in self._kept:
            features = self._read(key, len(texts))
            if features is None:
                features = self._make(key, len(texts), compute)
            self._kept[key] = features
        return self._kept[key]

    def _make(self, key: str, n_texts: int, compute: Callable[[], Tensor]) -> Tensor:
        """Computes and keeps features; one process on a folder does, and the others wait for it."""
        if self._folder is None:
            return compute().float()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(
                InUseError, ResourceError
            ):  # without it the work may be done twice
                stack.enter_context(locked(self._folder / ".lock", wait_s=_LOCK_WAIT_S))
            kept = self._read(key, n_texts)
            if kept is not None:
                return kept
            features = compute().float()
            stored = features.cpu().contiguous()
            metadata = {"sha256": _sha256(stored)}
            file = self._folder / f"{key}.safetensors"
            write_atomic(file, encode_tensors({"text_features_raw": stored}, metadata))
            return features

    def _read(self, key: str, n_texts: int) -> Tensor | None:
        """The kept features; None if there are none or they are damaged."""
        if self._folder is None or not (file := self._folder / f"{key}.safetensors").exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                sha256 = (opened.metadata() or {}).get("sha256")
                features: Tensor = opened.get_tensor("text_features_raw")
        except (OSError, SafetensorError) as error:
            log.warning("%s is damaged (%s). Computing it again.", file, error)
        else:
            if len(features) == n_texts and _sha256(features) == sha256:
                return features
            log.warning("%s is damaged. Computing it again.", file)
        with contextlib.suppress(OSError):
            file.unlink()
        return None
