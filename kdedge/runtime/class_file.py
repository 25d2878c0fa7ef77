"""The class matrix of an artifact with open classes: a file beside the graph.

With open classes, a graph gives image features [B, D], and `logits = features @ matrix.T`, in
float32 on the host. The matrix [C, D] is `scale` times the class vectors. New classes are new rows
of this file: no graph and no engine is built again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any
from unicodedata import category

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError
from kdedge.files import read_bytes
from kdedge.records import OPTIONAL, Positive, PositiveCount, Record, Sha256

Matrix = npt.NDArray[np.float32]

# Unicode's control characters, lone surrogates, line and paragraph separators
_UNWRITABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class ClassChange(Record):
    """Record that classes were added or removed after the export.

    Attributes:
        at: ISO 8601 time.
        kdedge: version of kdedge that changed them.
        added: names, in the order of the new last rows.
        removed: names.
        class_vectors: provenance hash of the added vectors; None without any.
    """

    at: str
    kdedge: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    class_vectors: Annotated[Sha256 | None, OPTIONAL] = None


@dataclass(frozen=True)
class OpenClasses(Record):
    """The class matrix of an artifact with open classes.

    Attributes:
        file: name of the file with the matrix [C, D], float32, in NumPy's format.
        dim: D, length of the features and of each row.
        scale: `logit_scale.exp()`, the length of a row of a unit class vector.
        changes: what was changed since the export.
    """

    file: str
    dim: PositiveCount
    scale: Positive
    changes: tuple[ClassChange, ...] = ()


def file_name(version: int) -> str:
    """Name of the matrix file; each change of the classes writes the next version."""
    return f"classes.{version}.npy"


def matrix_bytes(matrix: Matrix) -> bytes:
    """The content of a matrix file: [C, D] in NumPy's format, version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(matrix), (1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_matrix(path: Path, *, n_classes: int, dim: int) -> Matrix:
    """Reads a class matrix, [C, D].

    Args:
        path: the file.
        n_classes: C, the number of the artifact's class names.
        dim: D, the length of the graph's features.

    Raises:
        DataError: the file is damaged, or is not a finite float32 matrix of this shape.
    """
    remedy = "Copy the folder from the export again, or export again."
    data = read_bytes(path)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"its version is {version}, not (1, 0)")  # noqa: TRY301
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TokenError, RecursionError) as error:
        raise DataError(
            f"{path} is not a matrix in NumPy's format: {error}.\n  {remedy}"
        ) from error
    if dtype != np.float32 or len(shape) != 2 or is_fortran:
        raise DataError(
            f"{path} holds {dtype} {list(shape)}; expected float32 [classes, {dim}], row by row.\n"
            f"  {remedy}"
        )
    if shape != (n_classes, dim):
        raise DataError(
            f"{path} has {shape[0]} rows of {shape[1]} values, but the artifact has {n_classes}"
            f" classes and features of {dim} values.\n  {remedy}"
        )
    values = data[stream.tell() :]
    if len(values) != 4 * n_classes * dim:
        raise DataError(
            f"{path} has {len(values)} bytes of values; expected {4 * n_classes * dim}.\n  {remedy}"
        )
    found = np.frombuffer(values, np.float32).reshape(shape)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise DataError(f"{path} has NaN or infinity in row {row + 1}.\n  {remedy}")
    return found


def check_class_names(names: tuple[str, ...], before: dict[str, Any]) -> None:
    """Checks the class names of a record.

    Raises:
        ValueError: there are none, or they cannot be told apart or written in one line each.
    """
    del before
    if not names or not all(map(_is_name, names)) or len(set(names)) != len(names):
        raise ValueError("distinct names, one or more, without line breaks and control characters")


def _is_name(name: str) -> bool:
    """Whether a class name fits into one line.

    The check is weaker than a class list's `str.isprintable`, which accepts more characters in
    newer Python versions: a device's Python may be older than that of the exporting machine.
    """
    return bool(name) and _UNWRITABLE.isdisjoint(map(category, name))
