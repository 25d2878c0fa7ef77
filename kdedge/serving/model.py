"""The model that is served, and the thread that runs it on batches of waiting requests."""

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
from kdedge.runtime.backend import to_input
from kdedge.runtime.preprocess import decode_image, resize_and_crop


class ServedModel:
    """A loaded artifact, which is closed once nothing refers to this object.

    So a replaced model stays loaded until its last request is answered.

    Args:
        classifier: the loaded artifact.
        batch: largest batch into which requests are joined; None for the artifact's largest batch.

    Attributes:
        classifier: the loaded artifact.
        artifact: the classifier's artifact.
        max_batch: largest batch.
        close: closes the artifact immediately.
    """

    def __init__(self, classifier: Classifier, batch: int | None) -> None:
        self.classifier = classifier
        self.artifact = classifier.artifact
        largest = classifier.max_batch
        self.max_batch = largest if batch is None else min(batch, largest)
        self.close = weakref.finalize(self, classifier.close)
        self.close.atexit = False  # closing may hang

    def describe(self) -> str:
        """The names of the model file and of its backend."""
        return f"{self.classifier.file.name} on {self.classifier.backend.describe()}"

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch, so that the first request is not slower."""
        size_px = self.artifact.preprocess.size_px
        for n_images in (1, self.max_batch):
            self.classifier.logits(np.zeros((n_images, size_px, size_px, 3), np.uint8))

    def prepare(self, data: bytes, *, max_pixels: int) -> npt.NDArray[Any]:
        """Decodes an image file to the graph's input, [1, 3, S, S].

        Raises:
            ImageError: the file is no image, is damaged, or has more pixels.
        """
        image = decode_image(data, max_pixels=max_pixels)
        pixels = np.asarray(resize_and_crop(image, self.artifact.preprocess))
        return to_input(pixels[None], self.artifact.pixels)

    def run(self, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[N, 3, S, S] -> outputs of the graph: logits [N, C], or features with open classes."""
        return self.classifier.outputs(inputs, max_batch=self.max_batch)


# [N, 3, S, S], as the graph takes images
RequestImages = npt.NDArray[Any]

# Outputs of the graph, one row per image: logits, or features with open classes
GraphOutputs = npt.NDArray[np.float32]


class _Waiting(NamedTuple):
    """Images that wait for a model, and the future of their outputs."""

    model: ServedModel
    inputs: RequestImages
    future: Future[GraphOutputs]


class Batcher:
    """Runs models on batches of waiting images.

    A single image runs at once and does not wait for others. Images that arrive while a batch runs
    form the next batch, up to the model's largest batch.

    Args:
        on_batch: called with the number of images of each batch.
    """

    def __init__(self, on_batch: Callable[[int], None]) -> None:
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, model: ServedModel, inputs: RequestImages) -> Future[GraphOutputs]:
        """Runs a model on images.

        Args:
            model: the model.
            inputs: one or more images.

        Returns:
            The outputs of the graph, one row per image, as a future that can be cancelled until its
            batch begins.
        """
        future: Future[GraphOutputs] = Future()
        with self._changed:
            self._waiting.append(_Waiting(model, inputs, future))
            self._changed.notify()
        return future

    def close(self, *, patience_s: float) -> bool:
        """Ends the thread after all waiting images are run.

        Args:
            patience_s: seconds to wait for that.

        Returns:
            Whether the thread has ended; if not, it keeps running.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while waiting := self._next_batch():
            self._run(waiting)
            del waiting  # so that a replaced model can be closed

    def _run(self, waiting: list[_Waiting]) -> None:
        """Runs a batch and completes the futures of its requests."""
        batch = [request for request in waiting if request.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            inputs = batch[0].inputs
            if len(batch) > 1:
                inputs = np.concatenate([request.inputs for request in batch])
            outputs = batch[0].model.run(inputs)
        except Exception as error:  # any error goes to the requests, and the thread continues
            for request in batch:
                request.future.set_exception(error)
            return
        self._on_batch(len(outputs))
        start = 0
        for request in batch:
            request.future.set_result(outputs[start : start + len(request.inputs)])
            start += len(request.inputs)

    def _next_batch(self) -> list[_Waiting]:
        """The images of one model that have waited longest; empty when the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            batch: list[_Waiting] = []
            n_images = 0
            while self._waiting:
                waiting = self._waiting[0]
                n_images += len(waiting.inputs)
                if batch and (
                    waiting.model is not batch[0].model or n_images > waiting.model.max_batch
                ):
                    break
                batch.append(self._waiting.popleft())
        return batch
