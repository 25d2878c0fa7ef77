"""The artifact: the folder that goes to the device, and `artifact.json`, which describes it.

`artifact.json` has the SHA-256 of every file in the folder. A file is used only if it has not
changed: `Artifact.checked` compares its hash before anything is deserialized. It also has the
SHA-256 of its own `Artifact.description`. ONNX and OpenVINO files repeat the description in their
metadata, with which `Artifact.check_metadata` compares it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import category

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, AliasPath, Field

from kdedge import __version__
from kdedge.errors import DataError, os_reason
from kdedge.files import (
    MAX_JSON_BYTES,
    highest_number,
    home_path,
    read_bytes,
    sha256_file,
    sha256_json,
    write_json,
)
from kdedge.records.evaluation import Gates, ParityResult
from kdedge.records.record import Positive, PositiveCount, Record, Sha256, parse_record
from kdedge.runtime.none_of_these import NoneBelow, NoneOfThese
from kdedge.runtime.preprocess import Mean, Preprocess, Side, Std

Matrix = npt.NDArray[np.float32]

ARTIFACT_FILE = "artifact.json"
ARTIFACT_FORMAT = 6

Precision = Literal["fp32", "fp16", "int8"]
Device = Literal["any", "cpu", "gpu"]
Gate = Literal["passed", "missed", "not measured"]
Head = Literal["scores", "argmax"]
PixelType = Literal["float", "uint8"]
FittedTo = Literal["labels", "teacher"]


def _plain_name(name: str) -> str:
    has_separator = any(mark in name for mark in "/\\:")
    is_reserved = name in ("", ".", "..", ARTIFACT_FILE)
    if not name.isprintable() or has_separator or is_reserved:
        raise ValueError("a plain name of a file in the artifact's folder")
    return name


# A name that cannot lead out of the folder
FileName = Annotated[str, AfterValidator(_plain_name)]

# Unicode's control characters, lone surrogates, line and paragraph separators
_UNWRITABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class ModelFile(Record):
    """One file of the artifact that a backend can run.

    Attributes:
        name: the file's name in the folder.
        target: its target, such as `onnx` or `tensorrt`.
        precision: precision of its weights and arithmetic.
        device: device that it is meant for.
        sha256: SHA-256 of the file's bytes, in hex.
        n_bytes: size of the file.
        data: name of its external data file, which is one of `Artifact.others`; None if the
            weights are in the file itself.
        made_from: SHA-256 of the ONNX file that an engine was built from; None for ONNX files.
        built_with: tool, versions, device, profile, flags and seconds of the build.
        parity: comparison with the model on real images; None if not measured.
        gate: whether the comparison passed the recipe's gates.
        none_below: its limits for "none of these"; None if the artifact cannot tell, or if those
            of the float32 file hold for it.
    """

    name: FileName
    target: str
    precision: Precision
    device: Device
    sha256: Sha256
    n_bytes: Annotated[int, Field(ge=1, le=10**18)]
    data: str | None = None
    made_from: Sha256 | None = None
    built_with: dict[str, Any] = field(default_factory=dict)
    parity: ParityResult | None = None
    gate: Gate = "not measured"
    none_below: NoneBelow | None = None


@dataclass(frozen=True)
class Temperature(Record):
    """A fitted temperature (Guo et al. 2017, arXiv:1706.04599); top-1 predictions do not change.

    It is part of `logit_scale` in the graph or the class matrix: nothing divides at run time.

    Attributes:
        value: the logits of the model as it was trained are divided by it; above 1 they were too
            confident.
        fitted_to: `labels`: lowest negative log-likelihood of labeled images. `teacher`: mean
            confidence on unlabeled images equals the share with the teacher's top-1 class.
        images: describes the images.
        n_images: their number.
    """

    value: Positive
    fitted_to: FittedTo
    images: str
    n_images: PositiveCount


@dataclass(frozen=True)
class ClassChange(Record):
    """Record that classes were added or removed after the export.

    Attributes:
        at: ISO 8601 time.
        kdedge: version of kdedge that changed them.
        added: names, in the order of the new last rows.
        removed: names.
        class_vectors: hash of what the added vectors were made from; None if none were added.
    """

    at: str
    kdedge: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    class_vectors: Sha256 | None = None


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


def matrix_name(version: int) -> str:
    """Name of the matrix file; each change of the classes writes the next version."""
    return f"classes.{version}.npy"


def matrix_bytes(matrix: Matrix) -> bytes:
    """The content of a matrix file: [C, D] in NumPy's format, version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(matrix), (1, 0), allow_pickle=False)
    return buffer.getvalue()


def check_recorded_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Checks the class names of a record, and returns them.

    Each has to fit into one line. The names of a class list must also be `str.isprintable`
    (`data.classes.check_class_names`). That accepts more characters in newer Python versions, and a
    device's Python may be older than the exporting machine's.

    Raises:
        ValueError: there are none, or they cannot be told apart or written in one line each.
    """
    fits = [bool(name) and _UNWRITABLE.isdisjoint(map(category, name)) for name in names]
    if not names or not all(fits) or len(set(names)) != len(names):
        raise ValueError("distinct names, one or more, without line breaks and control characters")
    return names


def _steps(preprocess: Preprocess, pixels: PixelType) -> list[str]:
    size = preprocess.size_px
    resampled = f"{preprocess.interpolation} with antialiasing, as Pillow's Image.resize; values"
    resized = f"Resize to {size} x {size} pixels, whatever the aspect ratio"
    crop = []
    if preprocess.resize_mode == "shortest":
        resized = (
            f"Resize the shorter side to {size} pixels and the longer one to floor({size} * longer"
            " / shorter)"
        )
        crop = [
            f"Crop {size} x {size} pixels from the center; left and top are round((side - {size})"
            " / 2), halves to the even number."
        ]
    scaled = "Divide by 255, in float32." if pixels == "float" else "Keep the bytes 0 to 255."
    return [
        "Decode to 8-bit RGB, upright by EXIF's orientation, transparent parts over white.",
        f"{resized}, {resampled} stay 8-bit.",
        *crop,
        scaled,
        f"Order the axes as [batch, 3, {size}, {size}]. Apply no mean and no standard deviation:"
        " the graph does.",
    ]


def _metadata_value(text: str) -> Any:
    """A value of a model file's metadata, which is text or JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


INPUT_NAME = "images"
OUTPUT_NAME = "logits"
FEATURES_NAME = "features"

_REMEDY = "Copy the folder from the export again, or export again."


def artifact_at(path: str | PathLike[str]) -> Path | None:
    """The artifact that a path names, or the newest of a run's folder `artifacts`; else None.

    A path names an artifact by its folder or by its artifact.json.
    """
    path = home_path(path)
    folder = path.parent if path.name == ARTIFACT_FILE else path
    if (folder / ARTIFACT_FILE).is_file():
        return folder
    records = path.glob(f"*/{ARTIFACT_FILE}") if path.name == "artifacts" else ()
    return highest_number(file.parent for file in records)


def model_file_at(path: str | PathLike[str] | None) -> Path | None:
    """The file in an artifact's folder that a path names; None if it names something else."""
    path = home_path("" if path is None else path)
    is_file = path.is_file() and path.name != ARTIFACT_FILE
    return path if is_file and artifact_at(path.parent) is not None else None


def _at(*path: str) -> Any:
    """The place of a field in the sections of the file."""
    return Field(validation_alias=AliasPath(*path))


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """The fields that an artifact and its `artifact.json` have in the same form."""

    name: str
    class_names: Annotated[tuple[str, ...], AfterValidator(check_recorded_names)]
    pixels: Annotated[PixelType, _at("input", "pixels")]
    head: Annotated[Head, _at("output", "head")]
    max_batch: Annotated[PositiveCount, _at("input", "max_batch")]
    batch: Annotated[Literal["dynamic"] | PositiveCount, _at("input", "batch")]
    gates: Gates = field(default_factory=lambda: Gates({}, max_drop=100.0))  # all files pass
    files: tuple[ModelFile, ...] = ()
    others: dict[FileName, Sha256] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    open_classes: OpenClasses | None = None
    temperature: Temperature | None = None
    none_of_these: NoneOfThese | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Artifact(_Shared):
    """Content of an artifact, and how an image is classified with it.

    Attributes:
        path: the folder.
        name: name of the recipe.
        class_names: in the order of the logits.
        preprocess: how an image file becomes pixels. Mean and standard deviation are applied in
            the graph.
        pixels: the graph's input: `float` is [B, 3, S, S] float32 from 0 to 1, `uint8` the same
            shape from 0 to 255; RGB.
        head: `scores`: softmax(logits) gives the scores. `argmax`: logits only rank the classes.
        max_batch: the largest batch that it was made for.
        batch: `dynamic` for batches of 1 to `max_batch`, or the only batch size.
        gates: what its files must reach against the float32 model.
        files: the model files.
        others: SHA-256 in hex of each other file in the folder, by name.
        provenance: run, versions, seed, settings and hashes of what it was made from.
        open_classes: the file with the class matrix; None if the classes are in the graphs.
        temperature: what the logits were divided by, so that scores are calibrated; None if they
            are the model's own.
        none_of_these: how it tells images that show none of the classes; None if it cannot.
    """

    path: Path
    preprocess: Preprocess

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Artifact {self.path}: {', '.join(file.name for file in self.files)}>"

    @property
    def model_name(self) -> str:
        """Its name in a form that is valid as a folder, in a URL, and in quotes."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", self.name).strip("_") or "model"

    @property
    def output_name(self) -> str:
        """Name of the graphs' output: logits [B, C], or features [B, D] with open classes."""
        return OUTPUT_NAME if self.open_classes is None else FEATURES_NAME

    @property
    def batches(self) -> tuple[int, int]:
        """Smallest and largest batch of the graph."""
        return (1, self.max_batch) if self.batch == "dynamic" else (self.batch, self.batch)

    def with_files(self, *files: ModelFile) -> Artifact:
        """The artifact with these files added; a file replaces one of the same name."""
        merged = {file.name: file for file in (*self.files, *files)}
        return dataclasses.replace(self, files=tuple(merged.values()))

    def with_others(self, *names: str) -> Artifact:
        """The artifact that lists these files of its folder, besides model files, as they are."""
        hashes = {name: sha256_file(self.path / name) for name in names}
        return dataclasses.replace(self, others={**self.others, **hashes})

    def file(self, name: str) -> ModelFile:
        """The entry of a model file.

        Raises:
            DataError: there is no file of that name.
        """
        for file in self.files:
            if file.name == name:
                return file
        known = ", ".join(file.name for file in self.files) or "none"
        raise DataError(f"{self.path} has no model file {name!r}; it has {known}.")

    def none_below(self, file: ModelFile) -> NoneBelow | None:
        """The limit below which one of its files predicts "none"; None if it cannot.

        A file that was built elsewhere has the limit of the file that it was made from.
        """
        if self.none_of_these is None or file.none_below is not None:
            return file.none_below
        sources = [source for source in self.files if source.sha256 == file.made_from]
        sources += [source for source in self.files if source.precision == "fp32"]
        return next((s.none_below for s in sources if s.none_below is not None), None)

    def checked(self, name: str) -> Path:
        """The path of a file, after its hash and the hash of its external data were checked.

        Raises:
            DataError: the file is not listed or missing, or its SHA-256 differs.
        """
        expected = self.others.get(name)
        if expected is None:
            file = self.file(name)
            expected = file.sha256
            if file.data is not None:
                self.checked(file.data)
        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path} is missing.\n  {_REMEDY}")
        try:
            got = sha256_file(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {os_reason(error)}.") from error
        if got != expected:
            raise DataError(
                f"{path} has changed since the export.\n"
                f"  Its SHA-256 is {got},\n  {ARTIFACT_FILE} expects {expected}.\n  {_REMEDY}"
            )
        return path

    @property
    def description(self) -> dict[str, Any]:
        """The values without which its outputs mean something else, as plain values for JSON."""
        preprocess = self.preprocess
        return {
            "class_names": list(self.class_names),
            "preprocess": {
                "size_px": preprocess.size_px,
                "resize_mode": preprocess.resize_mode,
                "interpolation": preprocess.interpolation,
            },
            "input": {"pixels": self.pixels},
            # As they are read, so that 1 and 1.0 have the same hash
            "in_graph": {
                "mean": [float(value) for value in preprocess.mean],
                "std": [float(value) for value in preprocess.std],
            },
            "head": self.head,
        }

    def check_metadata(self, name: str, metadata: Mapping[str, str]) -> None:
        """Checks that a model file states the same description in its metadata.

        Args:
            name: the file's name.
            metadata: its metadata, as `deploy.export` writes it into ONNX files. What it lacks is
                not compared: files that take whole images have steps of their own, and a graph with
                open classes has no names.

        Raises:
            DataError: a value differs.
        """
        for key, value in self.description.items():
            if key not in metadata:
                continue
            stated, expected = _metadata_value(metadata[key]), value
            if isinstance(stated, dict) and isinstance(expected, dict):
                stated = {part: stated[part] for part in expected if part in stated}
                expected = {part: expected[part] for part in stated}
            if stated != expected:
                raise DataError(
                    f"{self.path / ARTIFACT_FILE}: {key} is {expected!s:.80}, but {name} was"
                    f" written for {stated!s:.80}.\n  {_REMEDY}"
                )

    def save(self) -> None:
        """Writes `artifact.json` atomically.

        Raises:
            ResourceError: the file cannot be written.
        """
        optional = ("open_classes", "temperature", "none_of_these")
        records = {name: getattr(self, name) for name in optional}
        values: dict[str, Any] = {
            "format": ARTIFACT_FORMAT,
            "kdedge": __version__,
            "name": self.name,
            "class_names": list(self.class_names),
            **self.input_record(),
            "output": {"name": self.output_name, "head": self.head},
            "description_sha256": sha256_json(self.description),
            **{name: record.to_dict() for name, record in records.items() if record is not None},
            "gates": self.gates.to_dict(),
            "files": [file.to_dict() for file in self.files],
            "others": self.others,
            "provenance": self.provenance,
        }
        write_json(self.path / ARTIFACT_FILE, values)

    def input_record(self) -> dict[str, Any]:
        """How an image file becomes the graph's input, and what the graph does itself."""
        preprocess = self.preprocess
        is_float = self.pixels == "float"
        return {
            "preprocess": {
                "size_px": preprocess.size_px,
                "resize_mode": preprocess.resize_mode,
                "interpolation": preprocess.interpolation,
                "crop": "center" if preprocess.resize_mode == "shortest" else "none",
                "rounding": "values to 8 bits after resizing; sides down; crop offsets to the"
                " nearest, halves to the even number",
                "normalization": "in graph",
                "steps": _steps(preprocess, self.pixels),
            },
            "input": {
                "name": INPUT_NAME,
                "pixels": self.pixels,
                "batch": self.batch,
                "max_batch": self.max_batch,
                "dtype": "float32" if is_float else "uint8",
                "layout": "NCHW",
                "channels": "RGB",
                "values": [0, 1] if is_float else [0, 255],
            },
            "in_graph": {"mean": preprocess.mean, "std": preprocess.std},
        }


def load_artifact(path: Path) -> Artifact:
    """Reads an artifact's `artifact.json`; no other file is opened.

    Args:
        path: the folder, or its `artifact.json`.

    Raises:
        DataError: it is missing, was not written by an export, or its description was changed.
        SetupError: a newer version of kdedge wrote it.
    """
    try:
        folder = artifact_at(path)
        is_folder = path.is_dir()
        exists = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise DataError(f"{path} cannot be read: {os_reason(error)}.") from error
    if folder is None:
        if is_folder:
            problem = f"has no {ARTIFACT_FILE}"
        else:
            problem = "is not a folder" if exists else "does not exist"
        raise DataError(
            f"{path} {problem}.\n  An artifact is the folder that `kdedge export` writes."
        )
    file = folder / ARTIFACT_FILE
    data = read_bytes(file, max_bytes=MAX_JSON_BYTES)
    contents = parse_record(_Contents, data, where=str(file), remedy=_REMEDY)
    preprocess = Preprocess(
        size_px=contents.size_px,
        mean=contents.mean,
        std=contents.std,
        interpolation=contents.interpolation,
        resize_mode=contents.resize_mode,
    )
    shared = {part.name: getattr(contents, part.name) for part in dataclasses.fields(_Shared)}
    artifact = Artifact(path=folder, preprocess=preprocess, **shared)
    if contents.description_sha256 != sha256_json(artifact.description):
        raise DataError(
            f"{file}: class_names, preprocess, input, in_graph or output has changed since kdedge"
            f" wrote it.\n  {_REMEDY} For other class names, export the run with them."
        )
    return artifact


@dataclass(frozen=True, kw_only=True)
class _Contents(_Shared, Record):
    """What is read of `artifact.json`; its other keys tell readers how to prepare an image."""

    format: Annotated[int, Field(ge=ARTIFACT_FORMAT, le=ARTIFACT_FORMAT)]
    kdedge: str
    # Without a default: a file has to have these
    gates: Gates = field()
    files: tuple[ModelFile, ...] = field()
    others: dict[FileName, Sha256] = field()
    provenance: dict[str, Any] = field()
    description_sha256: Sha256
    size_px: Annotated[Side, _at("preprocess", "size_px")]
    resize_mode: Annotated[Literal["shortest", "squash"], _at("preprocess", "resize_mode")]
    interpolation: Annotated[Literal["bicubic", "bilinear"], _at("preprocess", "interpolation")]
    mean: Annotated[Mean, _at("in_graph", "mean")]
    std: Annotated[Std, _at("in_graph", "std")]
