"""Watches a camera, a stream, a video or a folder with an exported artifact; needs no torch."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from kdedge.api.artifact import artifact_folder
from kdedge.api.keywords import check_keywords
from kdedge.api.predict import Engine, opened
from kdedge.errors import RecipeError
from kdedge.runtime.threads import check_threads
from kdedge.serving.source import open_source
from kdedge.serving.watch import Settings, watch_source

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdedge.runtime.artifact import Precision

_ENGINE = ("precision", "backend", "threads")


class WatchOptions(TypedDict, total=False):
    """How to watch: the fields of `Settings`, and of the artifact's file and runtime."""

    each: bool
    window: int | None
    min_score: float | None
    drift: str | None
    shot: int | None
    precision: Precision | None
    backend: str | None
    threads: int | None


def watch(
    source: Any,
    watched: str | Path | int,
    *,
    every: int = 1,
    existing: bool = False,
    **options: Unpack[WatchOptions],
) -> Generator[dict[str, Any], None, None]:
    """Classifies what a camera sees, and yields an event when the decision changes.

    The events are the objects that `kdedge watch` prints, one a line. Close the iterator to stop.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        watched: a camera's number or `/dev/video0`, an address (`rtsp://...`, `http://...`), a
            video file, or a folder that image files drop into.
        every: take the first and then every Nth frame or file.
        existing: of a folder, take the files that are there already, too.
        options: `each=True` yields every frame's answer, too. `window` is the number of frames of a
            decision, by default 7, and 1 for a folder. A frame below `min_score` percent supports
            no class. `drift` is the drift alarm's reference: `artifact`,
            `stream` or `off`; `shot` the number of frames that may show the same thing.
            `precision`, `backend` and `threads` are those of `kdedge.predict`.

    Yields:
        Events, as dictionaries with the key `event`.

    Raises:
        DataError: no such file or folder, there is no artifact, or a video has no usable frame.
        RecipeError: an option is wrong.
        SetupError: the camera cannot be opened, or a package is missing.
    """
    check_keywords(options, WatchOptions.__annotations__)
    values: dict[str, Any] = dict(options)
    engine = Engine(**{name: values.pop(name) for name in _ENGINE if name in values})
    check_threads(engine.threads)
    if every < 1:
        raise RecipeError(f"every is {every}; it must be 1 or more.")
    settings = Settings(**values)
    return _events(artifact_folder(source), str(watched), every, existing, engine, settings)


def _events(
    artifact: Path, watched: str, every: int, existing: bool, engine: Engine, settings: Settings
) -> Generator[dict[str, Any], None, None]:
    opened_source = open_source(watched, every=every, existing=existing)
    with opened(artifact, engine) as classifier:
        yield from watch_source(opened_source, classifier, settings)
