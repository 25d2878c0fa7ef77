"""Serves an artifact over HTTP, and watches a camera, a stream, a video or a folder with one."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.api.model import load
from kdedge.errors import RecipeError, check_at_least
from kdedge.files import home_path
from kdedge.inference.classify import Classifier
from kdedge.packages import SERVING, need
from kdedge.runs.find import RunOrArtifact, find_artifact
from kdedge.runs.folder import runs_folder
from kdedge.runtime.artifact import Precision
from kdedge.serving.limits import RequestLimits
from kdedge.serving.source import open_frames
from kdedge.serving.watch import DRIFT, Watcher

if TYPE_CHECKING:
    from kdedge.serving.server import Server


PORT = 8000


def serve(
    artifact: RunOrArtifact,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    max_megabytes: int = RequestLimits.max_megabytes,
    max_megapixels: int = RequestLimits.max_megapixels,
    max_requests: int = RequestLimits.max_requests,
    timeout: float = RequestLimits.timeout,
    precision: Precision | None = None,
    backend: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
) -> Server:
    """Serves an artifact over HTTP, in threads of this process, until the server is closed.

    `POST /predict` with an image gives its classes, `/v2` is the Open Inference Protocol,
    `/metrics` has counts for Prometheus, and `/` is a page for a browser. When the artifact
    changes, or a run has a newer one, the new one is checked and served without a pause.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        host: the address to listen on. The default takes requests of this machine alone.
        port: the port; 0 for a free one.
        max_megabytes: largest body of a request, 10^6 bytes; all together have eight times that.
        max_megapixels: largest image, 10^6 pixels, 178 at most; a larger one is not decoded.
        max_requests: requests that wait at once; more are answered with 503.
        timeout: seconds of a request, from its headers to its answer.
        precision: as in `kdedge.load`, and so are `backend` and `threads`.
        backend: the runtime, such as `onnxruntime`; None to choose one.
        batch: the largest batch that requests are joined to; None for the artifact's.
        threads: CPU threads; None for the runtime's default.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Returns:
        The running server with its `url`; a context manager that ends it.

    Raises:
        InUseError: another program has the port.
        RecipeError: the address, the port or an option cannot be used.
        DataError: there is no artifact, or it was changed or damaged.
        SetupError: a package is missing, or this machine can run no file of the artifact.
    """
    check_at_least(1, batch=batch, threads=threads)
    limits = RequestLimits(max_megabytes, max_megapixels, max_requests, timeout)
    if not 0 <= port <= 65535:
        raise RecipeError(f"port is {port}; it must be 0 to 65535.")
    need(*SERVING)
    from kdedge.serving.server import Server

    found = find_artifact(artifact, runs_folder(root))  # warns once
    given = home_path(getattr(artifact, "path", artifact))
    if found.is_relative_to(given):  # the server looks again, wherever this process goes
        artifact = given.absolute()
    return Server(
        partial(find_artifact, artifact, runs_folder(root).absolute(), warns=False),
        partial(Classifier.load, precision=precision, backend=backend, n_threads=threads),
        batch=batch,
        host=host,
        port=port,
        limits=limits,
    )


def watch(
    artifact: RunOrArtifact,
    source: str | Path | int,
    *,
    every: int = 1,
    existing: bool = False,
    frame_events: bool = False,
    window: int | None = None,
    min_score: float | None = None,
    drift: str | None = None,
    drift_frames: int | None = None,
    precision: Precision | None = None,
    backend: str | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Classifies what a camera sees, and yields an event when the decision changes.

    The events are the objects that `kdedge watch` prints, one a line. Asking for
    the first one opens the source and loads the model. Close the iterator to stop.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        source: a camera's number or `/dev/video0`, an address (`rtsp://...`, `http://...`), a
            video file, or a folder that image files drop into.
        every: take the first and then every Nth frame or file.
        existing: also take the files that are in the folder already.
        frame_events: also yield an event for every frame, as always for a folder without `window`.
        window: frames of a decision; None for 7, and 1 for a folder.
        min_score: percent; a frame with a lower score supports no class.
        drift: the drift alarm's reference: `artifact`, `stream` or `off`; None for the artifact's
            if it has enough images, or else the stream's.
        drift_frames: frames in a row that the alarm counts as one, as they may show the same thing;
            None for 25, and 1 for a folder.
        precision: as in `kdedge.predict`, and so are `backend` and `threads`.
        backend: the runtime; None to choose one.
        threads: CPU threads; None for the runtime's default.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Yields:
        Events, as dictionaries with the key `event`.

    Raises:
        DataError: no such file or folder, there is no artifact, or a video has no usable frame.
        RecipeError: an option is wrong.
        SetupError: the camera cannot be opened, or a package is missing.
    """
    check_at_least(1, every=every, window=window, drift_frames=drift_frames, threads=threads)
    if min_score is not None and not 0 <= min_score <= 100:
        raise RecipeError(f"min_score is {min_score}; expected 0 to 100.")
    if drift not in (None, *DRIFT):
        raise RecipeError(f"drift is {drift!r}; expected {', '.join(DRIFT)}.")
    folder = find_artifact(artifact, runs_folder(root))

    def events() -> Generator[dict[str, Any], None, None]:
        with (
            contextlib.closing(
                open_frames(str(source), every=every, existing=existing)
            ) as opened_source,
            load(folder, precision=precision, backend=backend, threads=threads) as classifier,
        ):
            yield from Watcher(
                opened_source,
                classifier,
                frame_events=frame_events,
                window=window,
                min_score=min_score,
                drift=drift,
                drift_frames=drift_frames,
            ).events()

    return events()
