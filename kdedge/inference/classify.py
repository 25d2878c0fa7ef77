"""Classifies images with an artifact: from an image to class names and scores."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.errors import RecipeError, SetupError, ShapeError
from kdedge.inference.choose import choose_and_load
from kdedge.inference.lines import ClassScore, NonFiniteLogits, Prediction, Result, UnreadableImage
from kdedge.runtime.artifact import Artifact, ModelFile, Precision, load_artifact
from kdedge.runtime.backend import Backend, TakesImages, run_batches, run_inputs, softmax
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.none_of_these import Gaussians, KnownScore, known_scores, read_gaussians
from kdedge.runtime.open_classes import class_logits, graph_of
from kdedge.runtime.preprocess import UnusableImage, decode_image, resize_and_crop
from kdedge.targets.registry import load_file

ImageInput = bytes | Image.Image | UnusableImage
"""An image file's bytes, a decoded RGB image, or the error that prevented both."""

Pixels = npt.NDArray[np.uint8] | UnusableImage
"""[H, W, 3], as a model file takes them, or the error of an image that has none."""


def decoded(image: ImageInput) -> Image.Image | UnusableImage:
    """Decodes an image file's bytes."""
    try:
        return decode_image(image) if isinstance(image, bytes) else image
    except UnusableImage as error:
        return error


class Classifier:
    """An artifact with one of its model files loaded. Several threads may use it.

    Args:
        artifact: class names, preprocessing, and the graph's input.
        file: the model file.
        backend: runs the file.
        n_threads: CPU threads that decode images; None: one per core, up to eight.

    Attributes:
        n_decoders: number of threads that decode images.
    """

    def __init__(
        self, artifact: Artifact, file: ModelFile, backend: Backend, *, n_threads: int | None = None
    ) -> None:
        self.artifact, self.file, self.backend = artifact, file, backend
        self._graph, self._matrix = graph_of(backend)
        self.none_below = artifact.none_below(file)
        self._gaussians: Gaussians | None = None
        if artifact.none_of_these is not None and self.none_below is not None:
            self._gaussians = read_gaussians(artifact.checked(artifact.none_of_these.file))
        self._lock = threading.Lock()  # an engine has only one context
        self._is_closed = False
        self.n_decoders = min(8, n_threads or usable_cores())

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

        By default this is an engine in fp16 or fp32 that this machine's GPU can run, or else the
        float32 file for OpenVINO or ONNX Runtime on the CPU. A file in int8, or one that missed its
        gate, is used only if its precision is given, or if `export --cpu` chose it on such a CPU.

        Args:
            artifact_path: the artifact's folder.
            precision: precision of the file; None for the default above.
            backend: backend that runs it; None for the default above.
            n_threads: CPU threads, for the model and for decoding images each; None for the
                engine's own choice.

        Raises:
            DataError: the artifact or its file has changed since the export.
            RecipeError: there is no such backend, or no file of that precision for it.
            GateError: all suitable files missed their gates, or are in int8.
            SetupError: this machine cannot run any file of the artifact.
        """
        artifact = load_artifact(artifact_path)
        file, loaded = choose_and_load(
            artifact, precision=precision, backend=backend, n_threads=n_threads
        )
        return cls(artifact, file, loaded, n_threads=n_threads)

    @classmethod
    def load_named(cls, path: Path, *, n_threads: int | None = None) -> Classifier:
        """Loads a certain file of an artifact, of whatever precision.

        Args:
            path: the file, in the artifact's folder.
            n_threads: as for `load`.

        Raises:
            DataError: the artifact has no such file, or one of them has changed since the export.
            SetupError: this machine cannot run the file.
        """
        artifact = load_artifact(path.parent)
        file = artifact.file(path.name)
        loaded = load_file(artifact, file, n_threads=n_threads)
        return cls(artifact, file, loaded, n_threads=n_threads)

    def close(self) -> None:
        """Frees the model, after a batch that another thread runs."""
        with self._lock:
            self._is_closed = True
            self.backend.close()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with self._lock:
            if self._is_closed:
                raise SetupError("The model is closed.\n  Load it again: kdedge.load(ARTIFACT).")
            yield

    @property
    def tells_none(self) -> bool:
        """Whether its predictions say if an image shows none of the classes."""
        return self.none_below is not None

    @property
    def max_batch(self) -> int:
        """Largest batch."""
        high = self.backend.batches[1]
        largest = self.artifact.batches[1]
        return largest if high is None else min(high, largest)

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Computes logits.

        Args:
            images: [N, S, S, 3], uint8, RGB, resized and cropped; any N.

        Returns:
            [N, C], float32, classes in the artifact's order.

        Raises:
            ShapeError: the graph and the artifact have different numbers of classes.
        """
        n_classes = len(self.artifact.class_names)
        if not len(images):
            return np.zeros((0, n_classes), np.float32)
        return self.as_logits(self._outputs(images))

    def _outputs(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """[N, S, S, 3] -> what the graph gives, [N, C] logits or [N, D] features."""
        with self._running():
            return run_batches(
                self._graph, images, pixels=self.artifact.pixels, max_batch=self.max_batch
            )

    def outputs(self, inputs: npt.NDArray[Any], *, max_batch: int) -> npt.NDArray[np.float32]:
        """Runs the graph on images that are prepared.

        Args:
            inputs: [N, 3, S, S], as the graph takes them; one or more.
            max_batch: batch size, if the file takes as many images.

        Returns:
            What the graph gives: logits [N, C], or features [N, D] with open classes.
        """
        with self._running():
            return run_inputs(self._graph, inputs, max_batch=max_batch)

    def as_logits(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the graph gives -> logits [N, C], classes in the artifact's order.

        Raises:
            ShapeError: the graph and the artifact have different numbers of classes.
        """
        logits = outputs if self._matrix is None else class_logits(outputs, self._matrix)
        n_classes = len(self.artifact.class_names)
        if logits.shape[1] != n_classes:
            raise ShapeError(
                f"{self.artifact.path / self.file.name} gives logits for {logits.shape[1]}"
                f" classes, but artifact.json has {n_classes} class names.\n"
                "  Export again."
            )
        return logits

    def _outputs_of(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """[H, W, 3] each -> [N, C] or [N, D]; a file with preprocessing takes them as they are."""
        if not isinstance(self.backend, TakesImages):
            return self._outputs(np.stack(images))
        with self._running():
            return np.concatenate([self._graph.run_image(image) for image in images])

    def classify_many(
        self, images: Iterable[tuple[str, ImageInput]], *, top: int = 1, batch: int | None = None
    ) -> Iterator[Result]:
        """Classifies images, in their order.

        Threads decode images while a batch is computed. With `batch=1` each result is yielded
        before the next image is requested.

        Args:
            images: keys and images.
            top: number of classes per image; at most all.
            batch: batch size; None: the largest that the artifact was made for.

        Raises:
            RecipeError: the artifact does not take batches of that size.
        """
        size = self.max_batch if batch is None else batch
        self.check_batch(size)
        return self._classify_many(images, top=top, size=size)

    def _classify_many(
        self, images: Iterable[tuple[str, ImageInput]], *, top: int, size: int
    ) -> Iterator[Result]:
        waiting: deque[tuple[str, Future[Pixels]]] = deque()

        def prepared(image: ImageInput) -> Pixels:
            return self.prepare(decoded(image))

        def classify_first() -> list[Result]:
            taken = [waiting.popleft() for _ in range(min(size, len(waiting)))]
            return self.classify_batch([(key, future.result()) for key, future in taken], top=top)

        n_ahead = 1 if size == 1 else 2 * size
        pool = ThreadPoolExecutor(self.n_decoders, thread_name_prefix="decode")
        try:
            for key, image in images:
                waiting.append((key, pool.submit(prepared, image)))
                if len(waiting) == n_ahead:
                    yield from classify_first()
            while waiting:
                yield from classify_first()
        finally:
            pool.shutdown(cancel_futures=True)

    def check_batch(self, size: int) -> None:
        """Checks a batch size.

        Raises:
            RecipeError: the artifact does not take batches of that size.
        """
        if not 1 <= size <= self.max_batch:
            low, high = self.backend.batches
            key = "batch" if low == high else "max_batch"
            raise RecipeError(
                f"The batch size is {size}, but {self.artifact.path / self.file.name} takes 1 to"
                f" {self.max_batch} images.\n"
                f"  Choose such a batch size, or export again with another export.{key}."
            )

    def prepare(self, image: Image.Image | UnusableImage) -> Pixels:
        """Prepares a decoded image as the file takes it; returns an error unchanged."""
        if isinstance(image, UnusableImage):
            return image
        if isinstance(self.backend, TakesImages):
            return np.asarray(image)
        return np.asarray(resize_and_crop(image, self.artifact.preprocess))

    def classify_batch(self, images: Sequence[tuple[str, Pixels]], *, top: int) -> list[Result]:
        """Classifies one batch of keys and prepared images."""
        usable = [(key, pixels) for key, pixels in images if not isinstance(pixels, UnusableImage)]
        answers: Iterator[Result] = iter(())
        if usable:
            keys, pictures = zip(*usable, strict=True)
            answers = iter(self.results(keys, self._outputs_of(pictures), top=top))
        return [
            UnreadableImage(key, pixels.reason)
            if isinstance(pixels, UnusableImage)
            else next(answers)
            for key, pixels in images
        ]

    def results(
        self, keys: Sequence[str], outputs: npt.NDArray[np.float32], *, top: int
    ) -> list[Prediction | NonFiniteLogits]:
        """The results of images for which the graph was run.

        Args:
            keys: of the images.
            outputs: what `outputs` gave for them.
            top: number of classes per image; at most all.
        """
        logits = self.as_logits(outputs)
        is_finite = np.isfinite(logits).all(axis=1, keepdims=True)  # [N, 1]
        logits, outputs = (np.where(is_finite, rows, np.float32(0)) for rows in (logits, outputs))
        names, has_scores = self.artifact.class_names, self.artifact.head == "scores"
        known: Sequence[KnownScore | None] = [None] * len(keys)
        if self._gaussians is not None and self.none_below is not None:
            known = known_scores(self._gaussians.scores(outputs), self.none_below)
        hint = "" if self.file.precision == "fp32" else "; try --precision fp32"
        results: list[Prediction | NonFiniteLogits] = []
        images = zip(keys, logits, 100 * softmax(logits), known, np.ravel(is_finite), strict=True)
        for key, row, scores, similarity, is_good in images:
            if not is_good:
                results.append(NonFiniteLogits(key, f"the model gives NaN or infinity{hint}"))
                continue
            best = np.argsort(-row, kind="stable")[:top]
            classes = tuple(
                ClassScore(names[c], float(scores[c]) if has_scores else None) for c in best
            )
            is_known = () if similarity is None else (similarity.is_none, similarity.percent)
            results.append(Prediction(key, classes, *is_known))
        return results
