"""The server's paths: `POST /predict`, the Open Inference Protocol, metrics and the web page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from kdedge.inference.lines import prediction_values
from kdedge.inference.results import NonFiniteLogits, Prediction
from kdedge.runtime.preprocess import ImageError
from kdedge.serving.limits import RequestLimits
from kdedge.serving.model import Batcher, GraphOutputs, RequestImages, ServedModel
from kdedge.serving.open_inference import (
    LENGTH_HEADER,
    SERVER,
    describe_model,
    format_answer,
    parse_request,
)
from kdedge.serving.uploads import Uploads, image_in, too_busy

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The Prometheus metrics of one server, in their own registry.

    Args:
        n_waiting: returns the number of requests that wait for an answer.
        n_bytes: returns the size of the request bodies in memory.

    Attributes:
        batches: histogram of images per batch.
        refused_images: number of images that cannot be decoded.
        artifacts: number of new artifacts by outcome, `taken` or `refused`.
        classes: number of predictions by class; the class "" counts "none of these".
        registry: all metrics.
    """

    def __init__(self, n_waiting: Callable[[], int], n_bytes: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter, histogram, gauge = (
            partial(kind, registry=registry) for kind in (Counter, Histogram, Gauge)
        )
        self._requests = counter(
            "kdedge_requests", "Requests by path and status code.", ["path", "code"]
        )
        self._seconds = histogram(
            "kdedge_request_seconds",
            "Seconds from a request's headers to its answer.",
            ["path"],
            buckets=_SECONDS,
        )
        self.batches = histogram("kdedge_batch_images", "Images of a batch.", buckets=_IMAGES)
        self.classes = counter(
            "kdedge_predictions", "Predictions by class; none of them: an empty class.", ["class"]
        )
        self.refused_images = counter("kdedge_images_refused", "Images that cannot be decoded.")
        self.artifacts = counter(
            "kdedge_new_artifacts", "New artifacts: taken or refused.", ["outcome"]
        )
        waiting = gauge("kdedge_requests_waiting", "Requests that wait for an answer.")
        waiting.set_function(n_waiting)
        bodies = gauge("kdedge_body_bytes", "Bytes of the request bodies that are in.")
        bodies.set_function(n_bytes)

    def count_request(self, path: str, code: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(path, str(code)).inc()
        self._seconds.labels(path).observe(seconds)


_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CLIENT_LEFT = 499
_DEFAULT_TOP = 5

Handler = Callable[[Request], Awaitable[Response]]


class App:
    """Answers requests with the current model.

    Args:
        name: the model's name in the protocol's paths.
        model: the first model.
        limits: limits of requests.

    Attributes:
        model: the model for new requests; may be replaced at any time.
        asgi: the application that a web server runs.
        metrics: the metrics that `/metrics` shows.
        is_draining: whether the server is about to end; answers then ask to close the connection.
    """

    def __init__(self, name: str, model: ServedModel, limits: RequestLimits) -> None:
        self._name = name
        self.model = model
        self._limits = limits
        self._n_waiting = 0
        self._uploads = Uploads(limits)
        self.metrics = Metrics(lambda: self._n_waiting, lambda: self._uploads.n_bytes)
        self.is_draining = False
        self._batcher = Batcher(self.metrics.batches.observe)
        n_decoders = model.classifier.n_decoders
        self._decoding = ThreadPoolExecutor(n_decoders, thread_name_prefix="decode")
        # JSON takes many times its size in memory, so one request is parsed at a time
        self._parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
        model_path = "/v2/models/{name}"
        handlers: dict[tuple[str, str], Handler | Response] = {
            ("GET", "/"): load_page(),
            ("GET", "/metrics"): self._get_metrics,
            ("POST", "/predict"): self._predict,
            ("GET", "/v2"): JSONResponse(SERVER),
            ("GET", "/v2/health/live"): JSONResponse({"live": True}),
            ("GET", "/v2/health/ready"): self._get_ready,
            ("GET", model_path): self._get_model,
            ("GET", f"{model_path}/ready"): self._get_model_ready,
            ("POST", f"{model_path}/infer"): self._infer,
        }
        self.asgi = Starlette(
            routes=[
                Route(path, self._with_metrics(path, handler), methods=[method])
                for (method, path), handler in handlers.items()
            ],
            exception_handlers={HTTPException: self._no_such_path, Exception: _on_exception},
        )

    def close(self, *, patience_s: float) -> bool:
        """Ends the threads after the last answer; arguments and result as for `Batcher.close`."""
        self._parsing.shutdown()
        self._decoding.shutdown()
        return self._batcher.close(patience_s=patience_s)

    def _with_metrics(self, path: str, handler: Handler | Response) -> Handler:
        """Returns a handler that counts each answer, including errors, in the metrics.

        Args:
            path: the path's name in the metrics.
            handler: the handler, or a constant answer.
        """

        async def answer(request: Request) -> Response:
            start = time.perf_counter()
            code = 500
            try:
                response = handler if isinstance(handler, Response) else await handler(request)
                code = response.status_code
            except HTTPException as error:
                response = _error_answer(error)
                code = error.status_code
            except ClientDisconnect:
                response = Response(status_code=_CLIENT_LEFT)
                code = _CLIENT_LEFT
            finally:
                self.metrics.count_request(path, code, time.perf_counter() - start)
            if self.is_draining:
                response.headers["Connection"] = "close"
            return response

        return answer

    async def _no_such_path(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        self.metrics.count_request("other", error.status_code, 0)
        return _error_answer(error)

    async def _get_metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=_METRICS_TYPE)

    async def _get_ready(self, _: Request, **about: str) -> Response:
        ready = {**about, "ready": not self.is_draining}
        return JSONResponse(ready, 503 if self.is_draining else 200)

    async def _get_model_ready(self, request: Request) -> Response:
        self._check_name(request)
        return await self._get_ready(request, name=self._name)

    async def _get_model(self, request: Request) -> Response:
        self._check_name(request)
        return JSONResponse(describe_model(self._name, self.model))

    def _check_name(self, request: Request) -> None:
        if request.path_params["name"] != self._name:
            raise HTTPException(404, f"there is no such model; there is {self._name}")

    async def _predict(self, request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self._limits.timeout
        top = _top(request)
        async with self._uploads.body(request, self._limits.timeout) as body:
            image = await image_in(request, body)
            with self._admitted():
                model = self.model
                prepare = partial(model.prepare, image, max_pixels=self._limits.pixels)
                outputs = await self._outputs(model, prepare, deadline)
        (prediction,) = self._predictions(model, outputs, top=top)
        return JSONResponse(prediction_values(prediction, None))

    async def _infer(self, request: Request) -> Response:
        self._check_name(request)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.timeout
        async with self._uploads.body(request, self._limits.timeout) as body:
            with self._admitted():
                model = self.model
                length = request.headers.get(LENGTH_HEADER)
                parse = partial(parse_request, body, length, model.artifact)
                parsing = loop.run_in_executor(self._parsing, parse)
                parsed = await self._in_time(parsing, deadline)
                prepare = partial(parsed.prepare, model, self._limits.pixels, deadline)
                outputs = await self._outputs(model, prepare, deadline)

                def answer() -> Response:
                    self._predictions(model, outputs, top=1)  # for the metrics
                    logits = model.classifier.as_logits(outputs)
                    content, headers = format_answer(self._name, parsed, logits)
                    return Response(content, headers=headers)

                # Beside the loop, since a thousand images with a thousand classes take a second
                return await asyncio.to_thread(answer)

    def _predictions(self, model: ServedModel, outputs: GraphOutputs, top: int) -> list[Prediction]:
        """The predictions from a graph's outputs, which the metrics then count by class.

        Raises:
            HTTPException: the model gives NaN or infinity.
        """
        results = model.classifier.results([""] * len(outputs), outputs, top=top)
        reasons = [one.reason for one in results if isinstance(one, NonFiniteLogits)]
        if reasons:
            raise HTTPException(500, reasons[0])
        predictions = [one for one in results if isinstance(one, Prediction)]
        for one in predictions:
            self.metrics.classes.labels("" if one.is_none else one.top[0].class_name).inc()
        return predictions

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        """Context of a request that waits for the model.

        Raises:
            HTTPException: too many requests wait already.
        """
        if self._n_waiting >= self._limits.max_requests:
            raise too_busy(f"{self._n_waiting} requests wait already")
        self._n_waiting += 1
        try:
            yield
        finally:
            self._n_waiting -= 1

    async def _outputs(
        self, model: ServedModel, prepare: Callable[[], RequestImages], deadline: float
    ) -> GraphOutputs:
        """Computes the graph's outputs for images.

        Raises:
            HTTPException: an image cannot be decoded, or the time is over.
        """
        loop = asyncio.get_running_loop()

        async def run() -> GraphOutputs:
            inputs = await loop.run_in_executor(self._decoding, prepare)
            return await asyncio.wrap_future(self._batcher.submit(model, inputs))

        try:
            return await self._in_time(run(), deadline)
        except ImageError as error:
            self.metrics.refused_images.inc()
            raise HTTPException(400, error.reason) from error

    async def _in_time(self, work: Awaitable[_T], deadline: float) -> _T:
        """Waits for a part of an answer, and gives it up after the deadline.

        Args:
            work: what to wait for.
            deadline: time of the event loop's clock.

        Raises:
            HTTPException: the time is over.
        """
        try:
            return await asyncio.wait_for(work, deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise too_busy(f"no answer within {self._limits.timeout:g} seconds") from error


def _error_answer(error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _top(request: Request) -> int:
    """The query parameter `top` of a request."""
    value = request.query_params.get("top", str(_DEFAULT_TOP))
    if not (value.isdecimal() and len(value) < 10 and int(value) > 0):
        raise HTTPException(400, f"top is {value[:40]!r}; it must be 1 or more")
    return int(value)


async def _on_exception(request: Request, error: Exception) -> Response:
    """Answers a request that failed because of an error in the model or in kdedge."""
    log.error(f"{request.method} {request.url.path} failed.", exc_info=error)
    return JSONResponse({"error": "the server failed; its log says why"}, 500)


def load_page() -> HTMLResponse:
    """Loads the page; its policy allows only its own script and style, camera and server."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash_of(text, 'script')};"
        f" style-src {_hash_of(text, 'style')}; img-src blob: data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(
        text,
        headers={
            "Content-Security-Policy": policy,
            "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
        },
    )


def _hash_of(text: str, element: str) -> str:
    """The hash of an inline script or style, for the page's policy."""
    match = re.search(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
    assert match is not None
    digest = hashlib.sha256(match[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
