"""Stored class vectors and text features, each with the hash of what it was made from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdedge.errors import DataError, explaining_writes
from kdedge.files import sha256_json
from kdedge.tensor_file import read_tensors, write_tensors

log = logging.getLogger(__name__)

_UNIT_LENGTH_TOLERANCE = 1e-3
_REMEDY = "Train or import again, which makes a new run, or restore the file from a backup."
_FEATURES = "text_features_raw"


@dataclass(frozen=True, eq=False)
class ClassVectors:
    """A teacher's text features, stored and frozen.

    Attributes:
        vectors: [C, D], float32, in class-list order; of unit length, or shorter if they are
            averages; [C, 0] for a method whose class texts depend on the image.
        class_names: the C names.
        vectors_hash: hash of the weights, prompts and texts that the vectors were made from.
    """

    vectors: Tensor
    class_names: tuple[str, ...]
    vectors_hash: str

    def __post_init__(self) -> None:
        """Checks that there is one vector per name, of at most unit length."""
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.class_names):
            raise DataError(
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

    def save(self, path: Path) -> None:
        """Writes one safetensors file, with names and hashes in its metadata."""
        vectors = self.vectors.detach().float().cpu().contiguous()
        names = json.dumps(list(self.class_names), ensure_ascii=False)
        facts = {"class_names": names, "made_by": self.vectors_hash}
        write_tensors(path, {"class_vectors": vectors}, facts)


def load_class_vectors(path: Path) -> ClassVectors:
    """Reads a file of `ClassVectors.save`.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    try:
        tensors, facts = read_tensors(path)
        names = tuple(json.loads(facts["class_names"]))
        return ClassVectors(tensors["class_vectors"], names, facts["made_by"])
    except DataError as error:
        raise DataError(f"{error}\n  {_REMEDY}") from error
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} does not hold class vectors: {error}.\n  {_REMEDY}") from error


class TextFeatureCache:
    """Features of frozen texts, computed once per set of weights.

    Args:
        folder: keeps the features between runs; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._in_memory: dict[str, Tensor] = {}

    def get(self, encoder: str, texts: Sequence[str], compute: Callable[[], Tensor]) -> Tensor:
        """The [T, D] float32 features of these texts; `encoder` identifies the encoder."""
        key = sha256_json([encoder, list(texts)])
        file = None if self._folder is None else self._folder / f"{key}.safetensors"
        if key not in self._in_memory and file is not None and file.exists():
            try:
                self._in_memory[key] = read_tensors(file)[0][_FEATURES]
            except (DataError, KeyError) as error:
                log.warning(f"{error} Computing it again.")
        if key not in self._in_memory:
            self._in_memory[key] = features = compute().float()
            if file is not None:
                with explaining_writes(file.parent):
                    file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(file, {_FEATURES: features.cpu().contiguous()}, {})
        return self._in_memory[key]
