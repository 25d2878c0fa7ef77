"""Serves an artifact over HTTP."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kdedge.api.artifact import artifact_folder
from kdedge.api.predict import Engine, EngineOptions
from kdedge.errors import RecipeError
from kdedge.inference.classify import Classifier
from kdedge.runtime.threads import check_threads
from kdedge.serving.limits import Limits
from kdedge.setup.packages import need_serving_packages

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdedge.serving.server import Server

PORT = 8000


def serve(
    source: Any,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    limits: Limits | None = None,
    **options: Unpack[EngineOptions],
) -> Server:
    """Serves an artifact over HTTP, in threads of this process, until the server is closed.

    `POST /predict` with an image gives its classes, `/v2` is the Open Inference Protocol,
    `/metrics` has counts for Prometheus, and `/` is a page for a browser. When the artifact
    changes, or a run has a newer one, the new one is checked and served without a pause.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        host: the address to listen on. The default takes requests of this machine alone.
        port: the port; 0 for a free one.
        limits: limits of requests; None for the defaults.
        options: `precision`, `backend` and `threads` as in `kdedge.load`; `batch` is the largest
            batch that requests are joined to, by default the artifact's.

    Returns:
        The running server with its `url`; a context manager that ends it.

    Raises:
        InUseError: another program has the port.
        RecipeError: the address, the port or an option cannot be used.
        DataError: there is no artifact, or it was changed or damaged.
        SetupError: a package is missing, or this machine can run no file of the artifact.
    """
    wanted = Engine(**options)
    check_threads(wanted.threads)
    if wanted.batch is not None and wanted.batch < 1:
        raise RecipeError(f"batch is {wanted.batch}; it must be 1 or more.")
    if not 0 <= port <= 65535:
        raise RecipeError(f"port is {port}; it must be 0 to 65535.")
    need_serving_packages()
    from kdedge.serving.server import Server
    from kdedge.serving.takeover import Source

    load = partial(
        Classifier.load,
        precision=wanted.precision,
        backend=wanted.backend,
        n_threads=wanted.threads,
    )
    found = Source(partial(artifact_folder, source), load, wanted.batch)
    return Server(found, host=host, port=port, limits=limits or Limits())
