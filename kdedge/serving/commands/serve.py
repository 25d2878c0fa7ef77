"""Serve an artifact over HTTP: classes of images, tensors, metrics and a page."""

from __future__ import annotations

import contextlib
import logging
import resource
from pathlib import Path
from typing import Any

import click

from kdedge.cli.options import artifact_options, count_option
from kdedge.progress import working
from kdedge.serving.api import PORT, serve
from kdedge.serving.limits import RequestLimits

log = logging.getLogger(__name__)


@click.command("serve", context_settings={"show_default": True})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on; 0.0.0.0 for the whole network, which anybody in it can then use.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    help="Port to listen on; 0 for a free one.",
)
@count_option(
    "--batch", help="Largest batch that waiting requests are joined to. [default: the artifact's]"
)
@count_option(
    "--max-megabytes",
    default=RequestLimits.max_megabytes,
    help="Largest body of a request, MB.",
)
@count_option(
    "--max-megapixels",
    default=RequestLimits.max_megapixels,
    help="Largest image; a larger one is refused before it is decoded.",
)
@count_option(
    "--max-requests",
    default=RequestLimits.max_requests,
    help="Requests that wait at once; more are answered with 503.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=RequestLimits.timeout,
    metavar="SECONDS",
    help="Time of a request, from its headers to its answer.",
)
@artifact_options
def command(artifact: Path, **options: Any) -> None:
    """Serve ARTIFACT, the folder that `kdedge export` wrote, over HTTP.

    \b
    POST /predict     an image -> JSON with its classes
    /v2               the Open Inference Protocol, for tritonclient and others
    /metrics          counts for Prometheus
    /                 a page to drop an image on, or to open the camera

    ARTIFACT may be a run: its newest artifact is served. When the artifact changes, or the run has
    a newer one, it is checked and served without a pause; a damaged one is refused.

    Ctrl-C and SIGTERM end the server: requests that are in are answered, new ones are refused. The
    exit code is 0 then. A second Ctrl-C does not wait.
    """  # noqa: D301 - in a raw string, click would not see its mark for unwrapped lines
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # each connection is an open file
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    with working(f"loading {artifact}"):
        server = serve(artifact, **options)
    with server:
        with contextlib.suppress(KeyboardInterrupt):  # SIGTERM raises one, too
            click.echo(f"Serving {server.name} at {server.url}, {server.model.describe()}")
            server.wait()
        log.info("Finishing the requests in progress, then stopping.")
