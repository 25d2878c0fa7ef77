"""The model that is served, and its replacement by another one while requests are answered."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.inference.classify import Classifier
from kdedge.inference.results import NonFiniteLogits, Prediction
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.backend import to_input
from kdedge.runtime.preprocess import decode_image, resize_and_crop


class ServedModel:
    """A loaded artifact, which is closed when it was replaced and nothing uses it any more.

    Args:
        classifier: the loaded artifact.
        batch: largest batch that requests are joined to; None for the artifact's.
    """

    def __init__(self, classifier: Classifier, batch: int | None = None) -> None:
        self._classifier = classifier
        largest = classifier.max_batch
        self.max_batch = largest if batch is None else min(batch, largest)
        self._lock, self._n_uses, self._is_replaced = threading.Lock(), 0, False

    @property
    def artifact(self) -> Artifact:
        """The artifact."""
        return self._classifier.artifact

    @property
    def n_decoders(self) -> int:
        """Number of threads that decode images for it."""
        return self._classifier.n_decoders

    def describe(self) -> str:
        """The model file and what runs it."""
        return f"{self._classifier.file.name} on {self._classifier.backend.describe()}"

    @property
    def backend_name(self) -> str:
        """Name of the runtime, such as `onnxruntime`."""
        return self._classifier.backend.name

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch, so that the first request does not wait longer.

        Raises:
            ShapeError: the graph and the artifact have different numbers of classes.
        """
        size_px = self.artifact.preprocess.size_px
        for n_images in (1, self.max_batch):
            self._classifier.logits(np.zeros((n_images, size_px, size_px, 3), np.uint8))

    def prepare(self, data: bytes, *, max_pixels: int) -> npt.NDArray[Any]:
        """An image file as the graph takes it, [1, 3, S, S].

        Raises:
            UnusableImage: it is no image, is damaged, or has more pixels.
        """
        image = decode_image(data, max_pixels=max_pixels)
        pixels = np.asarray(resize_and_crop(image, self.artifact.preprocess))
        return to_input(pixels[None], self.artifact.pixels)

    def run(self, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[N, 3, S, S] -> outputs of the graph: logits [N, C], or features with open classes."""
        return self._classifier.outputs(inputs, max_batch=self.max_batch)

    def logits(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Outputs of the graph -> logits [N, C]."""
        return self._classifier.as_logits(outputs)

    def results(
        self, outputs: npt.NDArray[np.float32], *, top: int
    ) -> list[Prediction | NonFiniteLogits]:
        """The results of images from outputs of the graph."""
        return self._classifier.results([""] * len(outputs), outputs, top=top)

    def retain(self) -> None:
        """Begins one more use."""
        with self._lock:
            self._n_uses += 1

    def release(self) -> None:
        """Ends a use."""
        with self._lock:
            self._n_uses -= 1
            is_done = self._is_replaced and not self._n_uses
        if is_done:
            self._classifier.backend.close()

    def replaced(self) -> None:
        """Says that no new use begins."""
        with self._lock:
            self._is_replaced, is_done = True, not self._n_uses
        if is_done:
            self._classifier.backend.close()


class CurrentModel:
    """The model that new requests get."""

    def __init__(self, model: ServedModel) -> None:
        self._model, self._lock = model, threading.Lock()

    @contextlib.contextmanager
    def used(self) -> Iterator[ServedModel]:
        """Context with the model, which stays loaded in it."""
        with self._lock:
            model = self._model
            model.retain()
        try:
            yield model
        finally:
            model.release()

    def replace(self, model: ServedModel) -> None:
        """Gives new requests another model; those that are in keep theirs."""
        with self._lock:
            old, self._model = self._model, model
        old.replaced()

    def close(self) -> None:
        """Frees the model, once nothing uses it."""
        self._model.replaced()
