"""Classifies images with an artifact: from an image to class names and scores."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.inference.choose import choose_and_load
from kdedge.inference.results import ClassScore, NonFiniteLogits, Prediction, Result
from kdedge.runtime.artifact import Artifact, ModelFile, Precision, load_artifact, model_file_at
from kdedge.runtime.backend import (
    Backend,
    TakesImages,
    batch_limits,
    run_batches,
    softmax,
)
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.none_of_these import Gaussians, Similarity, read_gaussians
from kdedge.runtime.open_classes import class_logits, graph_of
from kdedge.runtime.preprocess import ImageError, UnreadableImage, decode_image, resize_and_crop
from kdedge.targets.registry import load_file

if TYPE_CHECKING:
    from typing_extensions import Self

# An image file's bytes, a decoded RGB image, what reads one of them, or why there is none
ImageInput = bytes | Image.Image | ImageError | Callable[[], bytes | Image.Image]

# [H, W, 3], as a model file takes them, or the error of an image that has none
Pixels = npt.NDArray[np.uint8] | ImageError


def read_input(image: ImageInput) -> bytes | Image.Image | ImageError:
    """Reads an image file; an image in memory stays as it is."""
    try:
        return image() if callable(image) else image
    except ImageError as error:
        return error


def decode_input(image: ImageInput) -> Image.Image | ImageError:
    """Reads and decodes an image file."""
    data = read_input(image)
    try:
        return decode_image(data) if isinstance(data, bytes) else data
    except ImageError as error:
        return error


class Classifier:
    """An artifact with one of its model files loaded. Several threads may use it.

    Args:
        artifact: class names, preprocessing, and the graph's input.
        file: the model file.
        backend: runs the file.
        n_threads: CPU threads that decode images; None: one per core, up to eight.

    Attributes:
        artifact: class names, preprocessing, files, and each file's comparison.
        file: the loaded model file.
        backend: runs it.
        none_below: the file's limit for images of no class; None if it knows none.
        n_decoders: number of threads that decode images.
    """

    def __init__(
        self, artifact: Artifact, file: ModelFile, backend: Backend, *, n_threads: int | None = None
    ) -> None:
        self.artifact = artifact
        self.file = file
        self.backend = backend
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
        path: Path,
        *,
        precision: Precision | None = None,
        backend: str | None = None,
        n_threads: int | None = None,
    ) -> Self:
        """Loads the file of an artifact that suits this machine.

        By default this is an engine that this machine's GPU can run, or else the file that `export
        --cpu` chose on such a CPU, or else the float32 file for OpenVINO or ONNX Runtime. A file
        that missed its gate is used only if its precision is given.

        Args:
            path: the artifact's folder, or a certain file in it, of whatever precision.
            precision: precision of the file; None for the default above.
            backend: backend that runs it; None for the default above.
            n_threads: CPU threads, for the model and for decoding images each; None for the
                engine's own choice.

        Raises:
            DataError: the artifact or its file has changed since the export.
            RecipeError: there is no such backend, or no file of that precision for it; or a file
                is named, and a precision or a backend that it may not have.
            GateError: all suitable files missed their gates.
            SetupError: this machine cannot run any file of the artifact.
        """
        if model_file_at(path) is not None:
            if precision or backend:
                raise RecipeError(
                    f"{path} is a file, which has its own precision and backend.\n"
                    "  Leave both out, or name its folder."
                )
            artifact = load_artifact(path.parent)
            file = artifact.file(path.name)
            loaded = load_file(artifact, file, n_threads=n_threads)
        else:
            artifact = load_artifact(path)
            file, loaded = choose_and_load(
                artifact, precision=precision, backend=backend, n_threads=n_threads
            )
        with contextlib.ExitStack() as on_error:
            on_error.callback(loaded.close)
            classifier = cls(artifact, file, loaded, n_threads=n_threads)
            on_error.pop_all()
        return classifier

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        return batch_limits(self.backend, self.artifact.batches[1])[1]

    def logits(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Computes the logits of images that are already resized and cropped.

        Args:
            batch: [N, S, S, 3], uint8, RGB; S is `artifact.preprocess.size_px`.

        Returns:
            [N, C], float32, in the order of the class names.

        Raises:
            DataError: the batch has another shape or type.
            SetupError: the model is closed.
        """
        size_px = self.artifact.preprocess.size_px
        has_shape = batch.ndim == 4 and batch.shape[1:] == (size_px, size_px, 3)
        if batch.dtype != np.uint8 or not has_shape:
            raise DataError(
                f"The batch is {batch.dtype}, {list(batch.shape)}. Give uint8 pixels, 0 to 255, of"
                f" the shape [N, {size_px}, {size_px}, 3]."
            )
        if not len(batch):
            return np.zeros((0, len(self.artifact.class_names)), np.float32)
        return self.as_logits(self._outputs(list(batch)))

    def _outputs(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """[S, S, 3] each -> [N, C] logits or [N, D] features; [H, W, 3] if the file takes those."""
        with self._running():
            if isinstance(self.backend, TakesImages):
                return np.concatenate([self._graph.run_image(image) for image in images])
            return run_batches(self._graph, np.stack(images), max_batch=self.max_batch)

    def outputs(self, inputs: npt.NDArray[Any], *, max_batch: int) -> npt.NDArray[np.float32]:
        """Runs the graph on images that are prepared.

        Args:
            inputs: [N, 3, S, S], as the graph takes them; one or more.
            max_batch: batch size, if the file takes as many images.

        Returns:
            What the graph gives: logits [N, C], or features [N, D] with open classes.
        """
        with self._running():
            return run_batches(self._graph, inputs, max_batch=max_batch, are_inputs=True)

    def as_logits(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the graph gives -> logits [N, C], classes in the artifact's order."""
        return outputs if self._matrix is None else class_logits(outputs, self._matrix)

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
        if not 1 <= size <= self.max_batch:
            low, high = self.backend.batches
            key = "batch" if low == high else "max_batch"
            raise RecipeError(
                f"The batch size is {size}, but {self.artifact.path / self.file.name} takes 1 to"
                f" {self.max_batch} images.\n"
                f"  Choose such a batch size, or export again with another export.{key}."
            )
        return self._classify_many(images, top=top, size=size)

    def _classify_many(
        self, images: Iterable[tuple[str, ImageInput]], *, top: int, size: int
    ) -> Iterator[Result]:
        waiting: deque[tuple[str, Future[Pixels]]] = deque()

        def prepared(image: ImageInput) -> Pixels:
            return self.prepare(decode_input(image))

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

    def prepare(self, image: Image.Image | ImageError) -> Pixels:
        """Prepares a decoded image as the file takes it; returns an error unchanged."""
        if isinstance(image, ImageError):
            return image
        if isinstance(self.backend, TakesImages):
            return np.asarray(image)
        return np.asarray(resize_and_crop(image, self.artifact.preprocess))

    def classify_batch(self, images: Sequence[tuple[str, Pixels]], *, top: int) -> list[Result]:
        """Classifies one batch of keys and prepared images."""
        keys = []
        usable = []
        for key, pixels in images:
            if not isinstance(pixels, ImageError):
                keys.append(key)
                usable.append(pixels)
        answers: Iterator[Result] = iter(())
        if usable:
            answers = iter(self.results(keys, self._outputs(usable), top=top))
        results: list[Result] = []
        for key, pixels in images:
            if isinstance(pixels, ImageError):
                results.append(UnreadableImage(key, pixels.reason))
            else:
                results.append(next(answers))
        return results

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
        is_finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))  # [N]
        logits = np.where(is_finite[:, None], logits, np.float32(0))
        outputs = np.where(is_finite[:, None], outputs, np.float32(0))
        names = self.artifact.class_names
        has_scores = self.artifact.head == "scores"
        similarities: list[Similarity | None] = [None] * len(keys)
        if self._gaussians is not None and self.none_below is not None:
            similarities = [*self.none_below.similarities(self._gaussians.scores(outputs))]
        hint = "" if self.file.precision == "fp32" else "; float32 may not"
        results: list[Prediction | NonFiniteLogits] = []
        all_scores = 100 * softmax(logits)  # [N, C], percent
        for i, key in enumerate(keys):
            if not is_finite[i]:
                results.append(NonFiniteLogits(key, f"the model gives NaN or infinity{hint}"))
                continue
            scores = all_scores[i]
            best = np.argsort(-logits[i], kind="stable")[:top]
            classes = tuple(
                ClassScore(names[c], float(scores[c]) if has_scores else None) for c in best
            )
            similarity = similarities[i]
            if similarity is None:
                results.append(Prediction(key, classes))
            else:
                results.append(
                    Prediction(
                        key,
                        classes,
                        is_none=similarity.is_none,
                        known_percent=similarity.known_percent,
                    )
                )
        return results
