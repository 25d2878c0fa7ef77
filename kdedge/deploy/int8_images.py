"""Chooses the calibration set of INT8: images of the deployment, spread over the classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.data.images import spread
from kdedge.data.sources import ImageSource
from kdedge.deploy.pixels import PixelArray, draw_contents, read_different_pixels, read_pixels
from kdedge.errors import DataError
from kdedge.progress import progress
from kdedge.runtime.preprocess import Preprocess

log = logging.getLogger(__name__)

# Candidates per calibration image that are classified, so that rare classes are included
N_CANDIDATES = 2

# With fewer images, the ranges depend on which images were chosen
N_ADVISED = 100

_METHOD = "round-robin over predicted classes"
_BATCH = 32


@dataclass(frozen=True)
class CalibrationSet:
    """Images for quantization, after resize and crop.

    Attributes:
        pixels: [N, S, S, 3], uint8, RGB; one of each class in turn.
        files: for each image its `key` in the source, the `sha256` of its file, and `predicted`,
            the index of the class that the float32 graph predicts.
        seed: seed that candidates were drawn with.
        preprocess: preprocessing of the pixels.
    """

    pixels: PixelArray
    files: tuple[dict[str, Any], ...]
    seed: int
    preprocess: Preprocess

    def hold_out(self, n_images: int, n_ranges: int) -> tuple[CalibrationSet, CalibrationSet]:
        """Splits the set in two: for ranges, and for the choice between quantized models.

        Args:
            n_images: images to hold out, at most a third of all.
            n_ranges: largest number of images for ranges.
        """
        n_images = min(n_images, len(self.files) // 3)
        held_out = spread(len(self.files), n_images) if n_images else []
        rest = sorted(set(range(len(self.files))).difference(held_out))[:n_ranges]
        ranges, held = (
            replace(self, pixels=self.pixels[rows], files=tuple(self.files[i] for i in rows))
            for rows in (rest, sorted(held_out))
        )
        if len(rest) < N_ADVISED:
            more = "Add more images to data.unlabeled"
            log.warning(
                f"INT8 is calibrated on only {len(rest)} images; with fewer than {N_ADVISED},"
                " results depend on which images were chosen.\n"
                f"  {'Raise export.calibration_images' if n_ranges < N_ADVISED else more}."
            )
        return ranges, held

    def record(self) -> dict[str, Any]:
        """Plain values for `calibration.json`; the graph normalizes the images itself."""
        prepared = {k: v for k, v in self.preprocess.to_dict().items() if k not in ("mean", "std")}
        return {
            "n_images": len(self.files),
            "n_classes": len({file["predicted"] for file in self.files}),
            "method": _METHOD,
            "seed": self.seed,
            "preprocess": {**prepared, "normalization": "in graph"},
            "files": list(self.files),
        }


def choose_calibration_images(
    source: ImageSource,
    digests: Mapping[int, str],
    *,
    n_images: int,
    seed: int,
    predict: Callable[[PixelArray], npt.NDArray[np.float32]],
    preprocess: Preprocess,
) -> CalibrationSet:
    """Draws candidates, classifies them, and takes one of each predicted class in turn.

    Args:
        source: unlabeled images; labels are ignored.
        digests: position in the source -> SHA-256, for the images that may be chosen; images that
            the result is measured on are not among them.
        n_images: largest number of images.
        seed: seed for drawing candidates; the same images give the same set.
        predict: [B, S, S, 3] -> [B, C], logits of the float32 graph.
        preprocess: the deployment's preprocessing.

    Raises:
        DataError: no image is left to choose, one is no longer readable, or all look the same.
    """
    candidates = draw_contents(digests, seed)[: N_CANDIDATES * n_images]
    if not candidates:
        raise DataError(
            "No unlabeled image is left for INT8 calibration: all of them are used to measure the"
            " result.\n"
            "  Add more images to data.unlabeled, or leave INT8 out."
        )
    predicted: dict[int, int] = {}
    with progress("choosing calibration images", len(candidates), unit="images") as advance:
        for start in range(0, len(candidates), _BATCH):
            batch = candidates[start : start + _BATCH]
            classes = predict(read_pixels(source, batch, preprocess)).argmax(axis=1)
            predicted.update(zip(batch, classes.tolist(), strict=True))
            advance(start + len(batch))
    chosen = _round_robin(predicted)[:n_images]
    pixels = read_different_pixels(source, chosen, preprocess, use="INT8 calibration")
    files = tuple(
        {"key": source.items[i].key, "sha256": digests[i], "predicted": predicted[i]}
        for i in chosen
    )
    return CalibrationSet(pixels, files, seed, preprocess)


def _round_robin(predicted: Mapping[int, int]) -> Sequence[int]:
    """Orders images: the first of each class, then the second of each class, and so on."""
    n_before: Counter[int] = Counter()
    turns = {}
    for index, class_index in predicted.items():
        turns[index] = n_before[class_index], class_index
        n_before[class_index] += 1
    return sorted(turns, key=turns.__getitem__)
