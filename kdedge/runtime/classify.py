"""Image to class names and scores, with an artifact and whatever runs it on this machine."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.errors import DataError, RecipeError, ShapeError
from kdedge.runtime.artifact import Artifact, ModelFile, Pixels, Precision, load_artifact
from kdedge.runtime.backends._protocol import Backend, LoadedFile
from kdedge.runtime.choose import choose_and_load
from kdedge.runtime.preprocess import UnusableImage, decode_image, resize_and_crop

Picture = bytes | Image.Image | UnusableImage
"""An image file's bytes, a decoded RGB image, or why there is neither."""

_Decoded = npt.NDArray[np.uint8] | UnusableImage


class Answer(NamedTuple):
    """One class of a prediction.

    Attributes:
        class_name: as the class list has it.
        score_percent: softmax of the logits; None where the artifact's head only ranks.
    """

    class_name: str
    score_percent: float | None


@dataclass(frozen=True)
class Prediction:
    """What one image shows.

    Attributes:
        key: names the image.
        top: the most likely classes, best first.
    """

    key: str
    top: tuple[Answer, ...]


@dataclass(frozen=True)
class Unusable:
    """An image that cannot be read or decoded.

    Attributes:
        key: names the image.
        reason: why, as a sentence without a full stop.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class NoAnswer:
    """An image for which the model gives NaN or an infinite logit, as an overflow in fp16 does.

    Attributes:
        key: names the image.
        reason: what was found and what may help, as a sentence without a full stop.
    """

    key: str
    reason: str


Result = Prediction | Unusable | NoAnswer


def to_input(images: npt.NDArray[np.uint8], pixels: Pixels) -> npt.NDArray[Any]:
    """Gives what the graph takes.

    Args:
        images: [B, S, S, 3], uint8, RGB, resized and cropped.
        pixels: `float` for values from 0 to 1, `uint8` for the pixels as they are.

    Returns:
        [B, 3, S, S], contiguous, float32 or uint8.
    """
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # [B, 3, S, S]
    return planes if pixels == "uint8" else planes.astype(np.float32) / np.float32(255)


def run_batches(
    backend: Backend, images: npt.NDArray[np.uint8], *, pixels: Pixels, max_batch: int
) -> npt.NDArray[np.float32]:
    """Computes the logits of any number of images, in batches that the backend takes.

    Where it takes only larger batches than there are images left, the last image fills them up.

    Args:
        backend: a loaded model file.
        images: [N, S, S, 3], uint8, RGB, resized and cropped; one or more.
        pixels: what the graph takes.
        max_batch: images at once, where the backend takes as many.

    Returns:
        [N, C], float32.
    """
    low, high = backend.batches
    size = max(low, max_batch if high is None else min(high, max_batch))
    rows = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        missing = low - len(batch)
        padded = np.concatenate([batch, batch[-1:].repeat(missing, 0)]) if missing > 0 else batch
        rows.append(backend.run(to_input(padded, pixels))[: len(batch)])
    return np.concatenate(rows)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Scores from logits, [B, C] -> [B, C], in float64; the largest logit is taken off first."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    scores: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores


class Classifier:
    """An artifact with one of its model files loaded.

    Args:
        artifact: class names, preprocessing, what the graph takes.
        file: the model file.
        backend: runs it.
        n_threads: of the CPU, for decoding images; None: as many as it has, up to eight.
    """

    def __init__(
        self,
        artifact: Artifact,
        file: ModelFile,
        backend: Backend,
        *,
        n_threads: int | None = None,
    ) -> None:
        self.artifact, self.file, self.backend = artifact, file, backend
        self._n_decoders = min(8, n_threads or os.cpu_count() or 1)

    @classmethod
    def load(
        cls,
        artifact_path: Path,
        *,
        precision: Precision | None = None,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> Classifier:
        """Loads the file of an artifact that suits this machine.

        Without wishes that is an engine in fp16 or fp32 that this machine's GPU can run, or else
        the float32 ONNX file on the CPU. A file in int8, or one that missed its gate, is taken only
        where its precision is asked for.

        Args:
            artifact_path: the artifact's folder.
            precision: of the file; None for the choice above.
            backend: what is to run it; None for the choice above.
            n_threads: of the CPU, for the model and for decoding images each; None for the
                engine's own choice.

        Raises:
            DataError: the artifact, or the file chosen, is not what was exported, or the two do not
                belong together.
            RecipeError: there is no such backend, or no file of that precision for it.
            GateError: all files that would do missed their gates, or are in int8.
            SetupError: nothing here can run a file of the artifact.
        """
        artifact = load_artifact(artifact_path)
        file, loaded = choose_and_load(
            artifact, precision=precision, backend=backend, n_threads=n_threads
        )
        try:
            _check_input(artifact, file, loaded)
        except DataError:
            loaded.close()
            raise
        return cls(artifact, file, loaded, n_threads=n_threads)

    @property
    def max_batch(self) -> int:
        """Images that may go through at once."""
        high = self.backend.batches[1]
        largest = self.artifact.batches[1]
        return largest if high is None else min(high, largest)

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Computes logits.

        Args:
            images: [N, S, S, 3], uint8, RGB, resized and cropped; any number.

        Returns:
            [N, C], float32, classes in the artifact's order.

        Raises:
            ShapeError: the graph gives another number of classes than the artifact names.
        """
        n_classes = len(self.artifact.class_names)
        if not len(images):
            return np.zeros((0, n_classes), np.float32)
        logits = run_batches(
            self.backend, images, pixels=self.artifact.pixels, max_batch=self.max_batch
        )
        if logits.shape[1] != n_classes:
            raise ShapeError(
                f"{self.artifact.path / self.file.name} answers for {logits.shape[1]} classes,"
                f" artifact.json names {n_classes}.\n"
                "  Export again: the two do not belong together."
            )
        return logits

    def classify(self, picture: Picture, *, top: int = 1) -> tuple[Answer, ...]:
        """Gives the most likely classes of one image, best first.

        Raises:
            UnusableImage: it cannot be decoded.
            DataError: the model has no finite answer for it.
        """
        (result,) = self.classify_many([("image", picture)], top=top)
        if isinstance(result, Unusable):
            raise UnusableImage(result.reason)
        if isinstance(result, NoAnswer):
            raise DataError(f"{self.artifact.path / self.file.name}: {result.reason}.")
        return result.top

    def classify_many(
        self, images: Iterable[tuple[str, Picture]], *, top: int = 1, batch: int | None = None
    ) -> Iterator[Result]:
        """Classifies images, in their order.

        Decoding goes on in threads while a batch is computed. With `batch=1` each result comes
        before the next image is asked for.

        Args:
            images: keys and pictures.
            top: how many classes an image; all where there are fewer.
            batch: images at once; None: as many as the artifact was made for.

        Raises:
            RecipeError: the artifact does not take batches of that size.
        """
        size = self.max_batch if batch is None else batch
        if not 1 <= size <= self.max_batch:
            raise RecipeError(
                f"Batches of {size} images: {self.artifact.path / self.file.name} takes 1 to"
                f" {self.max_batch} at once."
            )
        return self._classify_many(images, top=top, size=size)

    def _classify_many(
        self, images: Iterable[tuple[str, Picture]], *, top: int, size: int
    ) -> Iterator[Result]:
        waiting: deque[tuple[str, Future[_Decoded]]] = deque()
        n_ahead = 1 if size == 1 else 2 * size
        pool = ThreadPoolExecutor(self._n_decoders, thread_name_prefix="decode")
        try:
            for key, picture in images:
                waiting.append((key, pool.submit(self._decode, picture)))
                if len(waiting) == n_ahead:
                    yield from self._classify_batch(waiting, top=top, size=size)
            while waiting:
                yield from self._classify_batch(waiting, top=top, size=size)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, picture: Picture) -> _Decoded:
        """The pixels that the model sees, [S, S, 3], or why there are none."""
        if isinstance(picture, UnusableImage):
            return picture
        try:
            image = decode_image(picture) if isinstance(picture, bytes) else picture
        except UnusableImage as error:
            return error
        return np.asarray(resize_and_crop(image, self.artifact.preprocess))

    def _classify_batch(
        self, waiting: deque[tuple[str, Future[_Decoded]]], *, top: int, size: int
    ) -> list[Result]:
        """Classifies the first `size` images that wait."""
        taken = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        decoded = [(key, future.result()) for key, future in taken]
        usable = [pixels for _, pixels in decoded if not isinstance(pixels, UnusableImage)]
        answers = iter(self._answers(np.stack(usable), top) if usable else ())
        return [
            Unusable(key, pixels.reason)
            if isinstance(pixels, UnusableImage)
            else self._result(key, next(answers))
            for key, pixels in decoded
        ]

    def _answers(
        self, images: npt.NDArray[np.uint8], top: int
    ) -> Iterator[tuple[Answer, ...] | None]:
        """Each image's best classes; None where a logit is not finite."""
        logits = self.logits(images)
        is_finite = np.atleast_1d(np.isfinite(logits).all(axis=1))
        scores = 100 * softmax(np.where(is_finite[:, None], logits, np.float32(0)))
        names, has_scores = self.artifact.class_names, self.artifact.head == "scores"
        for row, row_scores, is_good in zip(logits, scores, is_finite, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            yield (
                tuple(Answer(names[c], float(row_scores[c]) if has_scores else None) for c in best)
                if is_good
                else None
            )

    def _result(self, key: str, top: tuple[Answer, ...] | None) -> Prediction | NoAnswer:
        if top is not None:
            return Prediction(key, top)
        hint = "" if self.file.precision == "fp32" else "; try --precision fp32"
        return NoAnswer(key, f"the model gives no finite answer{hint}")


def _check_input(artifact: Artifact, file: ModelFile, backend: LoadedFile) -> None:
    """Makes sure that a file takes what its artifact says: an engine would misread other pixels."""
    size_px = artifact.preprocess.size_px
    expected = (3, size_px, size_px)
    got = tuple(
        wanted if size is None else size
        for size, wanted in zip(backend.image_shape, expected, strict=True)
    )
    if (backend.pixels, got) != (artifact.pixels, expected):
        raise DataError(
            f"{artifact.path / file.name} takes {backend.pixels} images of {list(got)};"
            f" artifact.json says {artifact.pixels}, {list(expected)}.\n"
            "  Export again: the two do not belong together."
        )
