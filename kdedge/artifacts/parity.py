"""The parity gate: an exported file must predict like the float32 model, on real images.

Runs on the device, without torch. `inference.agreement.measure_parity` computes the comparison;
this module runs the exported files, applies the gates, and stores a smoke set for the device.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from kdedge.errors import GateError
from kdedge.files import write_atomic
from kdedge.inference.agreement import measure_parity
from kdedge.records.evaluation import Gates, ParityResult, WorstImage
from kdedge.runtime.artifact import OUTPUT_NAME, Artifact, ModelFile, Precision
from kdedge.runtime.backend import Backend, TakesImages, run_batches
from kdedge.runtime.open_classes import class_logits, load_matrix
from kdedge.runtime.preprocess import decode_image

SMOKE_SET = "smoke_set.safetensors"
# Enough to detect a wrong build on the device; 30 MB at 224 pixels
MAX_SMOKE_IMAGES = 200

log = logging.getLogger(__name__)
_BATCH = 32  # images per call, if the graph takes any number
_MAX_NAMED = 3  # worst images in a message
_MIN_P_VALUE = 0.01
_MIN_FOR_GATE = 1000  # with fewer images, chance moves the agreement by more than about 0.3 %


def predict_pixels(
    backend: Backend, pixels: npt.NDArray[np.uint8], artifact: Artifact
) -> npt.NDArray[np.float32]:
    """Runs one of an artifact's files on images, batch by batch.

    Args:
        backend: the loaded file.
        pixels: [N, S, S, 3], RGB, after resize and crop, N at least 1.
        artifact: describes the graph's input.

    Returns:
        Logits, [N, C].
    """
    return run_batches(backend, pixels, max_batch=min(artifact.batches[1], _BATCH))


def predict_each_way(
    backend: Backend,
    pixels: npt.NDArray[np.uint8],
    artifact: Artifact,
    images: Iterable[npt.NDArray[np.uint8]],
) -> npt.NDArray[np.float32]:
    """Runs one of an artifact's files on images, in batches and alone.

    If the file takes any number of images, every second image runs alone: an engine has separate
    kernels for single images, which must be tested, too. A file with preprocessing takes `images`.

    Args:
        backend: the loaded file.
        pixels: [N, S, S, 3], RGB, after resize and crop, N at least 1.
        artifact: describes the graph's input.
        images: [H, W, 3] each, the same images before resize and crop.

    Returns:
        Logits, [N, C].
    """
    if isinstance(backend, TakesImages):
        return np.concatenate([backend.run_image(image) for image in images])
    logits = np.empty((len(pixels), len(artifact.class_names)), np.float32)
    if artifact.batches[0] == 1 and len(pixels) > 2:
        logits[::2] = predict_pixels(backend, pixels[::2], artifact)
        logits[1::2] = run_batches(backend, pixels[1::2], max_batch=1)
    else:
        logits[:] = predict_pixels(backend, pixels, artifact)
    return logits


def failed_gates(result: ParityResult, precision: Precision, gates: Gates) -> tuple[str, ...]:
    """Lists the gates that a file misses, in words; empty if it passes.

    A gate's share is rounded up to whole images.

    Args:
        result: comparison of the file.
        precision: precision of the file.
        gates: what the file must reach.
    """
    lowest = gates.agreement.get(precision, 0.0)
    n = result.n_images
    n_labeled = result.n_labeled
    n_differ = round(n * (100 - result.agreement_percent) / 100)
    n_lost = round(n_labeled * (result.accuracy_drop or 0) / 100)
    may_differ = math.ceil(n * (100 - lowest) / 100 - 1e-6)
    may_lose = math.ceil(n_labeled * gates.max_drop / 100 - 1e-6)
    lines = []
    if result.n_nonfinite:
        lines.append(f"NaN or infinity for {result.n_nonfinite} of {result.n_images} images")
    if n_differ > may_differ:
        lines.append(
            f"agreement {result.agreement_percent:.2f} %, but at least {lowest:.2f} % is required:"
            f" {n_differ} of {n} images differ, {may_differ} may (gates.agreement.{precision})"
        )
    if n_lost > may_lose:
        lines.append(
            f"accuracy {result.accuracy_drop:.2f} points lower, but at most {gates.max_drop:.2f} is"
            " allowed (gates.max_drop)"
        )
    return tuple(lines)


def gate_error(
    file: ModelFile, result: ParityResult, gates: Gates, passed: Sequence[str] = ()
) -> GateError | None:
    """The error for a file that misses its gates; None if it passes.

    Args:
        file: the file.
        result: comparison of the file.
        gates: what the file must reach.
        passed: names of the files that pass their gates.
    """
    missed = failed_gates(result, file.precision, gates)
    if not missed:
        return None
    remedies = {
        "int8": "Calibrate on more images (export.calibration_images), leave int8 out of"
        " export.precisions",
        "fp16": "Leave fp16 out of export.precisions",
        "fp32": "Export again, as float32 files should differ by rounding only",
    }
    lines = [
        f"{file.name} missed its gates against the float32 model: {'; '.join(missed)}.",
        f"  Compared on {result.n_images} images ({result.images}) with {result.runtime}.",
    ]
    if result.n_images < _MIN_FOR_GATE:
        lines[1] += f" One of them is {100 / result.n_images:.1f} %: more test images say more."
    if result.worst:
        shown = ", ".join(_described(entry) for entry in result.worst[:_MAX_NAMED])
        lines.append(f"  Worst images: {shown}.")
    if passed:
        lines.append(f"  Passed: {', '.join(passed)}.")
    lines.append(f"  {remedies[file.precision]}, or lower the gates in the recipe.")
    return GateError("\n".join(lines))


def _described(entry: WorstImage) -> str:
    if entry.predicted_class == entry.reference_class:
        here = "with other scores"
    elif entry.predicted_class is None:
        here = "here NaN or infinity"
    else:
        here = f"here {entry.predicted_class}"
    return f"{entry.image} ({entry.reference_class}, {here})"


@dataclass(frozen=True)
class SmokeSet:
    """Images with the float32 model's logits.

    Attributes:
        pixels: [K, S, S, 3] uint8, RGB, after resize and crop.
        logits: [K, C] float32, the float32 model's logits.
        images: PNG files of the first images before resize and crop, in any size.
    """

    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    images: tuple[bytes, ...] = ()

    def uncropped(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yields each image, [H, W, 3]: those of `images`, then the pixels of the others."""
        yield from (np.asarray(decode_image(file)) for file in self.images)
        yield from self.pixels[len(self.images) :]


def write_smoke_set(path: Path, smoke_set: SmokeSet, output_name: str = OUTPUT_NAME) -> None:
    """Writes a smoke set, complete or not at all.

    Args:
        path: the file.
        smoke_set: 1 to `MAX_SMOKE_IMAGES` images; with open classes, `logits` has the features.
        output_name: `Artifact.output_name`.

    Raises:
        ResourceError: the file cannot be written.
    """
    tensors: dict[str, npt.NDArray[Any]] = {
        "pixels": np.ascontiguousarray(smoke_set.pixels),
        output_name: np.ascontiguousarray(smoke_set.logits),
        "images": np.frombuffer(b"".join(smoke_set.images), np.uint8),
        "image_ends": np.cumsum([len(file) for file in smoke_set.images], dtype=np.int64),
    }
    write_atomic(path, safetensors.numpy.save(tensors))


def load_smoke_set(artifact: Artifact) -> SmokeSet:
    """Reads an artifact's smoke set, with logits of the artifact's current classes.

    Raises:
        DataError: the smoke set or the class matrix is missing or has changed since the export.
    """
    stored = read_smoke_set(artifact.checked(SMOKE_SET), artifact.output_name)
    if artifact.open_classes is None:
        return stored
    logits = class_logits(stored.logits, load_matrix(artifact))
    return SmokeSet(stored.pixels, logits, stored.images)


def read_smoke_set(path: Path, output_name: str = OUTPUT_NAME) -> SmokeSet:
    """Reads a smoke set whose hash was checked; with open classes, `logits` has the features."""
    tensors = safetensors.numpy.load_file(path)
    data = tensors["images"].tobytes()
    ends = tensors["image_ends"].tolist()
    images = tuple(data[start:end] for start, end in itertools.pairwise([0, *ends]))
    return SmokeSet(tensors["pixels"], tensors[output_name], images)


def smoke_logits(
    artifact: Artifact, backend: Backend, smoke_set: SmokeSet
) -> npt.NDArray[np.float32]:
    """Logits of a loaded file on a smoke set, [K, C]."""
    return predict_each_way(backend, smoke_set.pixels, artifact, smoke_set.uncropped())


def parity_on_smoke_set(artifact: Artifact, backend: Backend) -> ParityResult:
    """Compares a file on this machine with the float32 model's logits in the artifact.

    Args:
        artifact: the artifact, with `smoke_set.safetensors`.
        backend: one of its files, loaded.

    Raises:
        DataError: the smoke set is missing or has changed since the export.
    """
    smoke_set = load_smoke_set(artifact)
    n_images = len(smoke_set.pixels)
    return measure_parity(
        smoke_set.logits,
        smoke_logits(artifact, backend, smoke_set),
        keys=[f"{SMOKE_SET}[{i}]" for i in range(n_images)],
        labels=[None] * n_images,
        class_names=artifact.class_names,
        images=f"{n_images} images of {SMOKE_SET}",
        runtime=backend.describe(),
        head=artifact.head,
    )


def is_worse(measured: ParityResult, made: ParityResult) -> bool:
    """Whether a file agrees less on this machine than when it was made, beyond chance.

    This is Fisher's exact test, one-sided, at the level of 1 %: whether more of the images on which
    the file differs are among the images here than chance would put there.
    """
    n_here = measured.n_images
    n_before = made.n_images
    differ_here = _n_differing(measured)
    n_differ = differ_here + _n_differing(made)
    # Ways to choose the images that differ, fewer of them here than there are
    ways = (math.comb(n_here, n) * math.comb(n_before, n_differ - n) for n in range(differ_here))
    p_value = 1 - sum(ways) / math.comb(n_here + n_before, n_differ)
    return measured.n_nonfinite > made.n_nonfinite or p_value < _MIN_P_VALUE


def _n_differing(result: ParityResult) -> int:
    """Number of images whose top-1 class differs from the float32 model's."""
    return round(result.n_images * (1 - result.agreement_percent / 100))


def decisive_parity(file: ModelFile, measured: ParityResult) -> ParityResult:
    """The comparison that decides a file's gate on this machine.

    A gate on few images would refuse many good files. So the comparison from when the file was made
    decides, if it has more images and the file is not worse here; otherwise `measured` does, the
    comparison on the smoke set on this machine.
    """
    made = file.parity
    if made is None or made.n_images <= measured.n_images or is_worse(measured, made):
        return measured
    return made


def warn_of_failed_gates(artifact: Artifact, file: ModelFile, backend: Backend) -> None:
    """Warns if a loaded file misses its gates on this machine, by the smoke set.

    Processors compute INT8 in different ways, so a file may pass on one machine and miss on
    another. Nothing is compared if it would take longer than a second.

    Raises:
        DataError: the smoke set has changed since the export.
    """
    if file.gate == "missed" or not (artifact.path / SMOKE_SET).is_file():
        return
    stored = load_smoke_set(artifact)
    first_two = SmokeSet(stored.pixels[:2], stored.logits[:2], stored.images[:2])
    smoke_logits(artifact, backend, first_two)  # the first call is slower
    began = time.monotonic()
    smoke_logits(artifact, backend, first_two)
    if (time.monotonic() - began) * len(stored.pixels) / len(first_two.pixels) > 1.0:
        return
    result = decisive_parity(file, parity_on_smoke_set(artifact, backend))
    error = gate_error(file, result, artifact.gates)
    if error is not None:
        log.warning("%s", error)
