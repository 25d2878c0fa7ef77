"""Counts for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from kdedge.inference.lines import Prediction

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counts of one server, in a registry of its own.

    Args:
        n_waiting: gives the number of requests that wait for an answer.
        n_bytes: gives the size of the bodies that are in.
    """

    def __init__(self, n_waiting: Callable[[], int], n_bytes: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "kdedge_requests", "Requests by path and status code.", ["path", "code"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "kdedge_request_seconds", "Seconds from a request's headers to its answer.", ["path"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "kdedge_batch_images", "Images of a batch.", buckets=_IMAGES, registry=registry
        )
        self._classes = Counter(
            "kdedge_predictions", "Predictions by class; none of them: an empty class.", ["class"],
            registry=registry,
        )  # fmt: skip
        self._refused = Counter(
            "kdedge_images_refused", "Images that cannot be decoded.", registry=registry
        )
        self._artifacts = Counter(
            "kdedge_new_artifacts", "New artifacts: taken or refused.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        waiting = Gauge(
            "kdedge_requests_waiting", "Requests that wait for an answer.", registry=registry
        )
        waiting.set_function(n_waiting)
        bodies = Gauge(
            "kdedge_body_bytes", "Bytes of the request bodies that are in.", registry=registry
        )
        bodies.set_function(n_bytes)

    def count_request(self, path: str, code: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(path, str(code)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_batch(self, n_images: int) -> None:
        """Counts a batch."""
        self._batches.observe(n_images)

    def count_prediction(self, prediction: Prediction) -> None:
        """Counts the best class of an image, or none."""
        self._classes.labels("" if prediction.is_none else prediction.top[0].class_name).inc()

    def count_refused_image(self) -> None:
        """Counts an image that cannot be decoded."""
        self._refused.inc()

    def count_artifact(self, outcome: str) -> None:
        """Counts a new artifact that was `taken` or `refused`."""
        self._artifacts.labels(outcome).inc()

    def text(self) -> bytes:
        """All counts, in Prometheus's text format."""
        text: bytes = generate_latest(self._registry)
        return text
