"""The artifact: the folder that goes to the device, and `artifact.json`, which says what is in it.

Everything in the folder is known by its SHA-256. A file is used only where its bytes are the ones
that were exported: `Artifact.checked` compares them before anything is deserialized.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import category

from kdedge import __version__
from kdedge._files import sha256_file, write_json
from kdedge.errors import DataError
from kdedge.records import (
    OPTIONAL,
    Bounds,
    Check,
    Holds,
    NonNegative,
    Percent,
    PositiveCount,
    Record,
    Sha256,
    Shape,
    read_record,
)
from kdedge.results import ParityResult
from kdedge.runtime.preprocess import Preprocess

FORMAT_VERSION = 1
FILE_NAME = "artifact.json"
INPUT_NAME = "images"
OUTPUT_NAME = "logits"

Precision = Literal["fp32", "fp16", "int8"]
Head = Literal["scores", "argmax"]
Pixels = Literal["float", "uint8"]
Device = Literal["any", "cpu", "gpu"]
Gate = Literal["passed", "missed", "not measured"]

# Unicode's control characters, lone surrogates, line and paragraph separators
_UNWRITABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})

_REMEDY = "Copy the folder from the export once more, or export again."


@dataclass(frozen=True)
class _BuiltWith(Shape):
    """The facts of `ModelFile.built_with` that kdedge computes with."""

    gmacs: Annotated[NonNegative, OPTIONAL]
    parameters: Annotated[PositiveCount, OPTIONAL]
    profiles: Annotated[list[Any], OPTIONAL]


@dataclass(frozen=True)
class ModelFile(Record):
    """One file of the artifact that a backend can run.

    Attributes:
        name: the file's name in the folder.
        target: what it was exported for, as in `onnx` or `tensorrt`.
        precision: of its weights and arithmetic.
        device: where it is meant to run.
        sha256: of the file's bytes, in hex.
        n_bytes: the file's size.
        data: the name of its external data file, which is one of `Artifact.others`; None where
            the weights are in the file itself.
        made_from: SHA-256 of the ONNX file that an engine was built from; None for ONNX files.
        built_with: what built it: tool, versions, device, profile, flags, seconds.
        parity: how it compares with the model on real images; None where that was not measured.
        gate: whether the comparison passed the recipe's gates.
    """

    name: str
    target: str
    precision: Precision
    device: Device
    sha256: Sha256
    n_bytes: Annotated[int, Bounds(ge=1, le=10**18)]
    data: str | None = None
    made_from: Sha256 | None = None
    built_with: Annotated[dict[str, Any], Holds(_BuiltWith)] = field(default_factory=dict)
    parity: ParityResult | None = None
    gate: Gate = "not measured"


@dataclass(frozen=True)
class Artifact:
    """What is in the folder and how an image becomes a class name with it.

    Attributes:
        path: the folder.
        name: of the recipe that it was made with.
        class_names: in the order of the model's outputs.
        preprocess: how an image file becomes pixels. Mean and standard deviation are in the graph
            already.
        pixels: what the graph takes: `float` is [B, 3, S, S] float32 from 0 to 1, `uint8` the same
            shape from 0 to 255; RGB.
        head: `scores`: softmax(logits) are the scores. `argmax`: only the ranking means something.
        max_batch: the largest batch that it was made for.
        batch: `dynamic` for 1 to `max_batch` images at once, or the one number that it takes.
        gates: what the files had to reach: agreement in percent by precision, and `max_drop`.
        files: what backends run.
        others: SHA-256 in hex of each other file in the folder, by name.
        provenance: command, versions, seeds and hashes of what it was made from.
    """

    path: Path
    name: str
    class_names: tuple[str, ...]
    preprocess: Preprocess
    pixels: Pixels
    head: Head
    max_batch: int
    batch: Literal["dynamic"] | int
    gates: dict[str, Any] = field(default_factory=dict)
    files: tuple[ModelFile, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = self.path / FILE_NAME
        names = [file.name for file in self.files] + list(self.others)
        for name in names:
            _check_file_name(name, where)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(f"{where}: {repeated[0]} is listed twice.\n  {_REMEDY}")
        for file in self.files:
            if file.data is not None and file.data not in self.others:
                raise DataError(
                    f"{where}: {file.name} keeps its weights in {file.data!r}, which is not among"
                    f" the artifact's other files.\n  {_REMEDY}"
                )

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and the largest batch that the graph takes."""
        return (1, self.max_batch) if self.batch == "dynamic" else (self.batch, self.batch)

    def with_files(self, *files: ModelFile) -> Artifact:
        """Gives the artifact with these files, each in the place of one with the same name."""
        merged = {file.name: file for file in (*self.files, *files)}
        return dataclasses.replace(self, files=tuple(merged.values()))

    def file(self, name: str) -> ModelFile:
        """Gives the entry of a file that backends run.

        Raises:
            DataError: there is none of that name.
        """
        for file in self.files:
            if file.name == name:
                return file
        known = ", ".join(file.name for file in self.files) or "none"
        raise DataError(f"{self.path} has no model file {name!r}; it has {known}.")

    def checked(self, name: str) -> Path:
        """Gives a file's path once its bytes, and its external data's, are the ones listed.

        Raises:
            DataError: the file is not listed or missing, or its SHA-256 is another.
        """
        if name in self.others:
            return self._check(name, self.others[name])
        file = self.file(name)
        if file.data is not None:
            self._check(file.data, self.others[file.data], why=f", which holds {name}'s weights,")
        return self._check(name, file.sha256)

    def _check(self, name: str, expected: str, why: str = "") -> Path:
        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path}{why} is missing.\n  {_REMEDY}")
        try:
            got = sha256_file(path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DataError(f"{path}{why} cannot be read: {reason}.") from error
        if got != expected:
            raise DataError(
                f"{path}{why} is not the file that was exported.\n"
                f"  Its SHA-256 is {got},\n  {FILE_NAME} expects {expected}.\n  {_REMEDY}"
            )
        return path

    def save(self) -> Path:
        """Writes `artifact.json` into the folder, atomically, and gives its path.

        Raises:
            ResourceError: it cannot be written.
        """
        path = self.path / FILE_NAME
        values = {
            "format": FORMAT_VERSION,
            "kdedge": __version__,
            "name": self.name,
            "class_names": list(self.class_names),
            "preprocess": self.preprocess.as_dict(),
            "input": {
                "name": INPUT_NAME,
                "pixels": self.pixels,
                "batch": self.batch,
                "max_batch": self.max_batch,
            },
            "output": {"name": OUTPUT_NAME, "head": self.head},
            "gates": self.gates,
            "files": [file.to_dict() for file in self.files],
            "others": self.others,
            "provenance": self.provenance,
        }
        write_json(path, values)
        return path


def _check_class_names(names: tuple[str, ...], before: dict[str, Any]) -> None:
    del before
    if not names or not all(map(_is_name, names)) or len(set(names)) != len(names):
        raise ValueError("distinct names, one or more, without line breaks and control characters")


def _is_name(name: str) -> bool:
    """Whether a class name can be written in one line anywhere.

    The check is weaker than a class list's `str.isprintable`: the characters that it knows grow
    with Python's version, and a device's may be older than the exporting machine's.
    """
    return bool(name) and _UNWRITABLE.isdisjoint(map(category, name))


@dataclass(frozen=True)
class _Input(Record):
    name: Literal["images"]
    pixels: Pixels
    batch: Literal["dynamic"] | PositiveCount
    max_batch: PositiveCount


@dataclass(frozen=True)
class _Output(Record):
    name: Literal["logits"]
    head: Head


@dataclass(frozen=True)
class _Gates(Shape):
    """Percent of agreement by precision, and points; an artifact may have none."""

    agreement: Annotated[dict[str, Percent], OPTIONAL]
    max_drop: Annotated[Percent, OPTIONAL]


@dataclass(frozen=True)
class _Contents(Record):
    """The contents of `artifact.json`."""

    format: Annotated[int, Bounds(ge=1, le=FORMAT_VERSION)]
    kdedge: str
    name: str
    class_names: Annotated[tuple[str, ...], Check(_check_class_names)]
    preprocess: Preprocess
    input: _Input
    output: _Output
    gates: Annotated[dict[str, Any], Holds(_Gates)]
    files: tuple[ModelFile, ...]
    others: dict[str, Sha256]
    provenance: dict[str, Any]


def load_artifact(path: Path) -> Artifact:
    """Reads an artifact's `artifact.json`; no other file is opened.

    Args:
        path: the folder, or its `artifact.json`.

    Raises:
        DataError: it is not there, or not what an export writes.
        SetupError: a newer kdedge wrote it.
    """
    folder = _folder(path)
    found = read_record(_Contents, folder / FILE_NAME, remedy=_REMEDY)
    return Artifact(
        path=folder,
        name=found.name,
        class_names=found.class_names,
        preprocess=found.preprocess,
        pixels=found.input.pixels,
        head=found.output.head,
        max_batch=found.input.max_batch,
        batch=found.input.batch,
        gates=found.gates,
        files=found.files,
        others=found.others,
        provenance=found.provenance,
    )


def _folder(path: Path) -> Path:
    """The artifact's folder, once it is one."""
    try:
        folder = path.parent if path.name == FILE_NAME and path.is_file() else path
        if (folder / FILE_NAME).is_file():
            return folder
        what = f"has no {FILE_NAME}" if folder.is_dir() else "is not a folder"
    except OSError as error:  # a name that is too long, a folder that may not be searched
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path} cannot be read: {reason}.") from error
    raise DataError(f"{folder} {what}.\n  An artifact is the folder that `kdedge export` writes.")


def _check_file_name(name: str, where: Path) -> None:
    is_plain = name.isprintable() and not set(name) & set("/\\:") and name not in ("", ".", "..")
    if not is_plain or name == FILE_NAME:
        raise DataError(
            f"{where}: {name!r} is not the name of a file in the artifact's own folder.\n"
            f"  {_REMEDY}"
        )
