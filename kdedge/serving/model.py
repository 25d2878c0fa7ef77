"""The model that is served, and the thread that runs it on batches of what is waiting."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdedge.inference.classify import Classifier
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.backend import to_input
from kdedge.runtime.preprocess import decode_image, resize_and_crop


class ServedModel:
    """A loaded artifact, which is closed once nothing refers to the model.

    So a model that was replaced stays loaded until its last request is answered.

    Args:
        classifier: the loaded artifact.
        batch: largest batch that requests are joined to; None for the artifact's.

    Attributes:
        classifier: the loaded artifact.
        max_batch: largest batch.
        close: closes the artifact at once.
    """

    def __init__(self, classifier: Classifier, batch: int | None = None) -> None:
        self.classifier = classifier
        largest = classifier.max_batch
        self.max_batch = largest if batch is None else min(batch, largest)
        self.close = weakref.finalize(self, classifier.close)
        self.close.atexit = False  # it may hang

    @property
    def artifact(self) -> Artifact:
        """The artifact."""
        return self.classifier.artifact

    def describe(self) -> str:
        """The model file and what runs it."""
        return f"{self.classifier.file.name} on {self.classifier.backend.describe()}"

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch: the first request must not wait longer."""
        size_px = self.artifact.preprocess.size_px
        for n_images in (1, self.max_batch):
            self.classifier.logits(np.zeros((n_images, size_px, size_px, 3), np.uint8))

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
        return self.classifier.outputs(inputs, max_batch=self.max_batch)


RequestImages = npt.NDArray[Any]
"""[N, 3, S, S], as the graph takes images."""

Outputs = npt.NDArray[np.float32]
"""What the graph gives, one row per image: logits, or features with open classes."""


class _Waiting(NamedTuple):
    model: ServedModel
    inputs: RequestImages
    future: Future[Outputs]


class Batcher:
    """Runs models on what is waiting.

    An image that is alone runs at once: nothing waits for others. While a batch runs, new images
    gather, and make the next batch, up to the model's largest.

    Args:
        on_batch: called with the number of images of each batch.
    """

    def __init__(self, on_batch: Callable[[int], None]) -> None:
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._changed, self._is_closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, model: ServedModel, inputs: RequestImages) -> Future[Outputs]:
        """Runs a model on images.

        Args:
            model: the model.
            inputs: one or more images.

        Returns:
            The future outputs of the graph, one row per image. It can be cancelled until its batch
            begins.
        """
        future: Future[Outputs] = Future()
        with self._changed:
            self._waiting.append(_Waiting(model, inputs, future))
            self._changed.notify()
        return future

    def close(self, *, patience_s: float) -> bool:
        """Ends the thread, once everything that waits was run.

        Args:
            patience_s: seconds for the model to end what it runs.

        Returns:
            Whether it did; its thread is left alone otherwise.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while waiting := self._next_batch():
            self._run(waiting)
            del waiting  # and with it the model, if it was replaced

    def _run(self, waiting: list[_Waiting]) -> None:
        batch = [request for request in waiting if request.future.set_running_or_notify_cancel()]
        if not batch:
            return
        inputs = [request.inputs for request in batch]
        try:
            outputs = batch[0].model.run(inputs[0] if len(batch) == 1 else np.concatenate(inputs))
        except Exception as error:  # whatever it is, the requests get it and the thread goes on
            for request in batch:
                request.future.set_exception(error)
            return
        self._on_batch(len(outputs))
        start = 0
        for request in batch:
            request.future.set_result(outputs[start : start + len(request.inputs)])
            start += len(request.inputs)

    def _next_batch(self) -> list[_Waiting]:
        """The longest waiting images of one model; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            taken: list[_Waiting] = []
            n_images = 0
            while self._waiting:
                first = self._waiting[0]
                n_images += len(first.inputs)
                if taken and (
                    first.model is not taken[0].model or n_images > first.model.max_batch
                ):
                    break
                taken.append(self._waiting.popleft())
        return taken
