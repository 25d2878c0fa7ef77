"""Joins waiting images to batches: one thread runs the model, others decode."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdedge.serving.model import ServedModel

Inputs = npt.NDArray[Any]
"""[N, 3, S, S], as the graph takes images."""

Outputs = npt.NDArray[np.float32]
"""What the graph gives, one row per image: logits, or features with open classes."""


class _Waiting(NamedTuple):
    model: ServedModel
    inputs: Inputs
    future: Future[Outputs]


class Batcher:
    """Runs models on what is waiting.

    An image that is alone runs at once: nothing waits for others. While a batch runs, new images
    gather, and make the next batch, up to the model's largest.

    Args:
        n_decoders: number of threads that decode images.
        on_batch: called with the number of images of each batch.
    """

    def __init__(self, n_decoders: int, on_batch: Callable[[int], None]) -> None:
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._changed, self._is_closed = threading.Condition(), False
        self._pool = ThreadPoolExecutor(n_decoders, thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, model: ServedModel, prepare: Callable[[], Inputs]) -> Future[Outputs]:
        """Runs a model on images, which another thread prepares before.

        Args:
            model: the model, which the caller uses.
            prepare: gives one or more images; its errors are the future's.

        Returns:
            The future outputs of the graph, one row per image. It can be cancelled until its batch
            begins.
        """
        future: Future[Outputs] = Future()
        model.retain()
        future.add_done_callback(lambda _: model.release())
        self._pool.submit(self._prepare, model, prepare, future)
        return future

    def close(self, *, patience_s: float) -> bool:
        """Ends the threads, once everything that waits was run.

        Args:
            patience_s: seconds for the model to end what it runs.

        Returns:
            Whether it did; its thread is left alone otherwise.
        """
        self._pool.shutdown()
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _prepare(
        self, model: ServedModel, prepare: Callable[[], Inputs], future: Future[Outputs]
    ) -> None:
        if future.cancelled():
            return
        try:
            inputs = prepare()
        except Exception as error:  # whatever it is, the request gets it and the thread goes on
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        with self._changed:
            self._waiting.append(_Waiting(model, inputs, future))
            self._changed.notify()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._run(batch)

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

    def _run(self, batch: list[_Waiting]) -> None:
        batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
        if not batch:
            return
        inputs = [one.inputs for one in batch]
        try:
            outputs = batch[0].model.run(inputs[0] if len(batch) == 1 else np.concatenate(inputs))
        except Exception as error:  # whatever it is, the requests get it and the thread goes on
            for one in batch:
                one.future.set_exception(error)
            return
        self._on_batch(len(outputs))
        start = 0
        for one in batch:
            one.future.set_result(outputs[start : start + len(one.inputs)])
            start += len(one.inputs)
