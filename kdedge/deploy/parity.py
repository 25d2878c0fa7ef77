"""The parity gate: an exported file must predict like the float32 student, on real images.

Runs on the device, without torch. `evaluation.agreement.compare` measures; this file runs the
exported files, compares the results with the gates, and stores a smoke set for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from kdedge.errors import DataError, GateError, ShapeError
from kdedge.evaluation.agreement import compare
from kdedge.files import write_atomic
from kdedge.progress import progress
from kdedge.results import ParityResult, WorstImage
from kdedge.runtime.artifact import Artifact, Precision
from kdedge.runtime.backend import Backend
from kdedge.runtime.batches import run_batches

SMOKE_SET = "smoke_set.safetensors"
MAX_SMOKE_IMAGES = 200
"""Enough to detect a wrong build on the device; 30 MB at 224 pixels."""

_BATCH = 32  # images per call, if the graph takes any number
_N_NAMED = 3  # of the worst images, in a message
_GATES: dict[Precision, Precision] = {"bf16": "fp16"}  # both are half precision


def predict_pixels(
    backend: Backend,
    pixels: npt.NDArray[np.uint8],
    artifact: Artifact,
    *,
    what: str | None = None,
) -> npt.NDArray[np.float32]:
    """Runs one of an artifact's files on images, batch by batch.

    Args:
        backend: the loaded file.
        pixels: [N, S, S, 3], RGB, after resize and crop, N at least 1.
        artifact: describes the graph's input.
        what: name of the file, for progress; empty for no progress.

    Returns:
        Logits, [N, C].

    Raises:
        ShapeError: the file does not give one row of logits per image.
    """
    smallest, largest = artifact.batches
    size = max(smallest, min(largest, _BATCH))
    n_classes = len(artifact.class_names)
    parts = []
    shown = progress(f"running {what}", len(pixels), unit="images") if what else nullcontext()
    with shown as advance:
        for start in range(0, len(pixels), size):
            images = pixels[start : start + size]
            logits = run_batches(backend, images, pixels=artifact.pixels, max_batch=size)
            if logits.shape != (len(images), n_classes):
                raise ShapeError(
                    f"{what or 'The file'} gives {list(logits.shape)} for {len(images)} images;"
                    f" expected [{len(images)}, {n_classes}], one logit per class.\n"
                    "  The file belongs to another artifact: export again."
                )
            parts.append(logits)
            if advance is not None:
                advance(start + len(images))
    return np.concatenate(parts)


def predict_each_way(
    backend: Backend, pixels: npt.NDArray[np.uint8], artifact: Artifact
) -> npt.NDArray[np.float32]:
    """Runs one of an artifact's files on images, in batches and alone.

    If the file takes any number of images, every second image runs alone: an engine has separate
    kernels for single images, which must be tested, too.

    Args:
        backend: the loaded file.
        pixels: [N, S, S, 3], RGB, after resize and crop, N at least 1.
        artifact: describes the graph's input.

    Returns:
        Logits, [N, C].

    Raises:
        ShapeError: the file does not give one row of logits per image.
    """
    logits = np.empty((len(pixels), len(artifact.class_names)), np.float32)
    step = 2 if artifact.batches[0] == 1 and len(pixels) > 2 else 1
    logits[::step] = predict_pixels(backend, pixels[::step], artifact)
    if step > 1:
        logits[1::step] = run_batches(backend, pixels[1::step], pixels=artifact.pixels, max_batch=1)
    return logits


def misses(result: ParityResult, precision: Precision, gates: Mapping[str, Any]) -> tuple[str, ...]:
    """Lists the gates that a file misses, in words; empty if it passes.

    Args:
        result: comparison of the file.
        precision: precision of the file; bf16 has the gate of fp16.
        gates: `agreement`, percent by precision, and `max_drop`, percentage points; as
            `GatesSpec.to_dict` gives them and artifacts store them.

    Raises:
        DataError: the gates of an artifact are not numbers.
    """
    agreement = gates.get("agreement")
    by_precision = agreement if isinstance(agreement, Mapping) else {}
    gate = _GATES.get(precision, precision)
    least = _number(f"gates.agreement.{gate}", by_precision.get(gate))
    max_drop = _number("gates.max_drop", gates.get("max_drop"))
    found = []
    if result.n_nonfinite:
        found.append(f"NaN or infinity for {result.n_nonfinite} of {result.n_images} images")
    if result.agreement_percent < least:
        got, wanted = _apart(result.agreement_percent, least)
        found.append(
            f"agreement {got} %, but at least {wanted} % is required (gates.agreement.{gate})"
        )
    if result.accuracy_drop is not None and result.accuracy_drop > max_drop:
        got, wanted = _apart(result.accuracy_drop, max_drop)
        found.append(
            f"accuracy {got} points lower, but at most {wanted} is allowed (gates.max_drop)"
        )
    return tuple(found)


def gate_error(
    file_name: str, precision: Precision, result: ParityResult, missed: tuple[str, ...]
) -> GateError:
    """Makes the error for a file that missed its gates, with the worst images and remedies."""
    remedies = {
        "int8": "Calibrate on more images (export.calibration_images), leave int8 out of"
        " export.precisions",
        "fp8": "Calibrate on more images (export.calibration_images), leave fp8 out of"
        " export.precisions",
        "fp16": "Leave fp16 out of export.precisions",
        "bf16": "Use the float32 file",
        "fp32": "Export again, as float32 files should differ by rounding only",
    }
    lines = [
        f"{file_name} missed its gates against the float32 student: {'; '.join(missed)}.",
        f"  Compared on {result.n_images} images ({result.images}) with {result.runtime}.",
    ]
    if result.worst:
        shown = ", ".join(_named(entry) for entry in result.worst[:_N_NAMED])
        lines.append(f"  Worst images: {shown}.")
    lines.append(f"  {remedies[precision]}, or lower the gates in the recipe.")
    return GateError("\n".join(lines))


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"{key} is {value!r}; expected a number.\n  Export again, as the artifact's gates are"
            " damaged."
        )
    return float(value)


def _apart(value: float, limit: float) -> tuple[str, str]:
    """Formats two numbers with two digits, or with as many as are needed to tell them apart."""
    for digits in (2, 3, 4, 6):
        texts = f"{value:.{digits}f}", f"{limit:.{digits}f}"
        if texts[0] != texts[1]:
            return texts
    return repr(value), repr(limit)


def _named(entry: WorstImage) -> str:
    if entry.predicted_class is None:
        return f"{entry.image} ({entry.reference_class}, here NaN or infinity)"
    if entry.predicted_class == entry.reference_class:
        return f"{entry.image} ({entry.reference_class}, with other scores)"
    return f"{entry.image} ({entry.reference_class}, here {entry.predicted_class})"


@dataclass(frozen=True)
class SmokeSet:
    """Images with the float32 student's logits, stored in the artifact.

    Attributes:
        pixels: [K, S, S, 3] uint8, RGB, after resize and crop.
        logits: [K, C] float32, of the float32 student.
    """

    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]


def write_smoke_set(
    path: Path, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]
) -> None:
    """Writes a smoke set, complete or not at all.

    Args:
        path: the file.
        pixels: [K, S, S, 3], K from 1 to `MAX_SMOKE_IMAGES`.
        logits: [K, C].

    Raises:
        DataError: shapes do not match, or there are no images or too many.
        ResourceError: the file cannot be written.
    """
    _check_smoke_set(path, pixels, logits)
    tensors: dict[str, npt.NDArray[Any]] = {
        "pixels": np.ascontiguousarray(pixels),
        "logits": np.ascontiguousarray(logits),
    }
    write_atomic(path, safetensors.numpy.save(tensors))


def read_smoke_set(path: Path) -> SmokeSet:
    """Reads a smoke set.

    Raises:
        DataError: the file is missing, or `write_smoke_set` did not write it.
    """
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path} cannot be read: {reason}.") from error
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a type numpy lacks
        raise DataError(f"{path} is not a safetensors file: {error}.\n  Export again.") from error
    if tensors.keys() != {"pixels", "logits"}:
        raise DataError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; expected logits, pixels.\n"
            "  Export again."
        )
    _check_smoke_set(path, tensors["pixels"], tensors["logits"])
    return SmokeSet(tensors["pixels"], tensors["logits"])


def _check_smoke_set(path: Path, pixels: npt.NDArray[Any], logits: npt.NDArray[Any]) -> None:
    is_square = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] and pixels.shape[3] == 3
    belongs = logits.ndim == 2 and len(logits) == len(pixels) and len(pixels) >= 1
    has_types = pixels.dtype == np.uint8 and logits.dtype == np.float32
    if not (is_square and belongs and has_types and len(pixels) <= MAX_SMOKE_IMAGES):
        raise DataError(
            f"{path}: the pixels are {pixels.dtype} {list(pixels.shape)} and the logits"
            f" {logits.dtype} {list(logits.shape)};\n  expected uint8 [K, S, S, 3] and float32"
            f" [K, classes], K from 1 to {MAX_SMOKE_IMAGES}. Export again."
        )


def parity_on_smoke_set(artifact: Artifact, backend: Backend) -> ParityResult:
    """Compares a file on this machine with the float32 student's logits in the artifact.

    Args:
        artifact: the artifact, with `smoke_set.safetensors`.
        backend: one of its files, loaded.

    Raises:
        DataError: the smoke set is missing, has changed since the export, or is of another model.
    """
    path = artifact.checked(SMOKE_SET)
    smoke_set = read_smoke_set(path)
    n_images, size_px = smoke_set.pixels.shape[:2]
    if size_px != artifact.preprocess.size_px:
        raise DataError(
            f"{path} has images of {size_px} pixels, but the artifact's model takes"
            f" {artifact.preprocess.size_px}.\n"
            "  Export again."
        )
    return compare(
        smoke_set.logits,
        predict_each_way(backend, smoke_set.pixels, artifact),
        keys=[f"{SMOKE_SET}[{i}]" for i in range(n_images)],
        labels=[None] * n_images,
        class_names=artifact.class_names,
        images=f"{n_images} images of {SMOKE_SET}",
        runtime=backend.describe(),
        head=artifact.head,
    )
