"""Watches a source with a classifier: events, pictures with answers, kept frames, drift."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdedge.deploy.parity import load_smoke_set
from kdedge.errors import DataError, RecipeError, ResourceError
from kdedge.inference.classify import Classifier, ImageInput
from kdedge.inference.pictures import with_answer
from kdedge.inference.results import Prediction, Result
from kdedge.runtime.preprocess import UnusableImage
from kdedge.watching import events
from kdedge.watching.bounded_folder import DEFAULT_LIMIT, Limit, as_jpeg, bounded_folder
from kdedge.watching.decide import UNDECIDED, Answer, Decider, Decision
from kdedge.watching.drift import MIN_REFERENCE, DriftMonitor, Reference, Scored
from kdedge.watching.frame import Frame, Lost, thumbnail
from kdedge.watching.keep import Keeper
from kdedge.watching.source import Source

_LOG = logging.getLogger(__name__)
DRIFT = ("artifact", "stream", "off")
WINDOW, SHOT = 7, 25
"""Defaults for frames; a folder's files are answered, and counted, one by one."""


@dataclass(frozen=True)
class Settings:
    """How to watch.

    Attributes:
        each: an event for each frame.
        window: frames of a decision; None for 7, and 1 for a folder.
        min_score: percent; a frame with a lower score supports no answer.
        save: folder for pictures with the answer drawn below.
        save_max: its limit.
        keep: folder for the least certain frames.
        keep_max: its limit.
        drift: the reference of the drift alarm: the artifact's smoke set, the start of the stream,
            or no alarm. None for the artifact's if it has enough images, or else the stream's.
        shot: frames that may show the same and count as one; None for 25, and 1 for a folder.
    """

    each: bool = False
    window: int | None = None
    min_score: float | None = None
    save: Path | None = None
    save_max: Limit = DEFAULT_LIMIT
    keep: Path | None = None
    keep_max: Limit = DEFAULT_LIMIT
    drift: str | None = None
    shot: int | None = None

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Settings from plain values: folders as text, limits as numbers or text.

        Raises:
            RecipeError: a value is wrong.
        """
        for name in ("save", "keep"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
            if f"{name}_max" in values:
                values[f"{name}_max"] = Limit.parse(f"{name}_max", values[f"{name}_max"])
        settings = cls(**values)
        for name in ("window", "shot"):
            number = getattr(settings, name)
            if number is not None and number < 1:
                raise RecipeError(f"{name} is {number}; it must be 1 or more.")
        if settings.min_score is not None and not 0 <= settings.min_score <= 100:
            raise RecipeError(f"min_score is {settings.min_score}; expected 0 to 100.")
        if settings.drift not in (None, *DRIFT):
            raise RecipeError(f"drift is {settings.drift!r}; expected {', '.join(DRIFT)}.")
        return settings


def watch_source(
    source: Source, classifier: Classifier, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Classifies a source's frames and yields events, as docs/deploy/watch.md lists them.

    Raises:
        RecipeError: the artifact gives no scores, and a setting needs them.
        DataError: a video has no frame, or none could be classified.
        InUseError: another watch keeps pictures in one of the folders.
        ResourceError: a folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(source.items.close)
        watching = _Watching(source, classifier, settings, stack)
        try:
            yield from watching.events()
        except (KeyboardInterrupt, GeneratorExit):
            watching.finish()
            raise
        watching.finish()


class _Watching:
    """The state of one watch."""

    def __init__(
        self,
        source: Source,
        classifier: Classifier,
        settings: Settings,
        stack: contextlib.ExitStack,
    ) -> None:
        self._source, self._classifier, self._settings = source, classifier, settings
        is_folder = source.kind == "folder"
        self._each = settings.each or (is_folder and settings.window is None)
        self._window = settings.window or (1 if is_folder else WINDOW)
        self._decider = Decider(self._window)
        self._has_scores = classifier.artifact.head == "scores"
        _check_folders(source, settings)
        _check_scores(classifier, settings, has_scores=self._has_scores)
        self._save = self._keeper = None
        if settings.save is not None:
            self._save = stack.enter_context(bounded_folder(settings.save, settings.save_max))
        if settings.keep is not None:
            folder = stack.enter_context(bounded_folder(settings.keep, settings.keep_max))
            self._keeper = Keeper(folder)
        self._drift, self._reference = self._open_drift(1 if is_folder else SHOT)
        self._counts = events.Counts()
        self._first_failed: str | None = None
        self._disk_failed = False

    def _open_drift(self, shot: int) -> tuple[DriftMonitor | None, str]:
        """The drift alarm, and where its reference is from."""
        wanted = self._settings.drift
        if wanted == "off" or not self._has_scores:
            return None, "off"
        shot = self._settings.shot or shot
        reference = None
        if wanted != "stream":
            reference = _reference_of(self._classifier, is_asked=wanted == "artifact")
        monitor = DriftMonitor(reference, shot=shot, has_none=self._classifier.tells_none)
        return monitor, "stream" if reference is None else "artifact"

    def events(self) -> Iterator[dict[str, Any]]:
        """Yields the events of the whole source."""
        yield events.start(
            self._source, self._classifier, window=self._window, reference=self._reference
        )
        waiting: deque[Frame] = deque()
        notices: deque[dict[str, Any]] = deque()

        def images() -> Iterator[tuple[str, ImageInput]]:
            for item in self._source.items:
                if not isinstance(item, Frame):
                    notices.append(events.notice(item))
                    if isinstance(item, Lost):
                        _LOG.warning("%s is lost: %s.", self._source.name, item.reason)
                    yield "", UnusableImage("")  # so that the event is not held until a frame
                    continue
                waiting.append(item)
                yield str(item.number), item.image

        n_classes = len(self._classifier.artifact.class_names)
        for result in self._classifier.classify_many(images(), top=n_classes, batch=1):
            if not result.key:
                yield notices.popleft()
            else:
                yield from self._frame(waiting.popleft(), result)
        self._check_any()
        self._counts.dropped = self._source.n_dropped()
        yield events.end(self._counts)

    def _frame(self, frame: Frame, result: Result) -> Iterator[dict[str, Any]]:
        """The events of one frame."""
        if not isinstance(result, Prediction):
            self._counts.unreadable += 1
            self._first_failed = self._first_failed or result.reason
            yield events.unreadable(frame, result.reason)
            return
        assert isinstance(frame.image, Image.Image)
        self._counts.classified += 1
        best = result.top[0]
        answer = Answer(None, is_none=True) if result.is_none else Answer(best.class_name)
        is_sure = self._settings.min_score is None or (
            best.score_percent is not None and best.score_percent >= self._settings.min_score
        )
        changed = self._decider.add(answer if is_sure else UNDECIDED, best.score_percent, frame)
        if self._each:
            decision = self._decider.decision()
            yield events.frame(frame, answer, result, decision)
        if changed is not None:
            yield events.decision(frame, changed)
        if changed is not None or self._each:
            self._try(lambda: self._save_picture(frame, self._decider.decision()))
        if self._keeper is not None or self._drift is not None:
            yield from self._look(frame, result)

    def _look(self, frame: Frame, result: Prediction) -> Iterator[dict[str, Any]]:
        """Keeps a frame, and tests for drift."""
        assert isinstance(frame.image, Image.Image)
        image = frame.image
        small = functools.cache(lambda: thumbnail(image))
        keeper, score = self._keeper, result.top[0].score_percent
        if keeper is not None and score is not None:
            self._try(lambda: keeper.add(_picture_name(frame), score, image, small()))
        if self._drift is None:
            return
        was_learning = self._drift.reference is None
        names = self._classifier.artifact.class_names
        for found in self._drift.add(_scored(result, names), small):
            event = events.drift(frame, found, names)
            if not found.is_over:
                _LOG.warning("%s", events.drift_text(found, self._source.name))
            yield event
        if was_learning and self._drift.reference is not None:
            yield events.learned(frame, self._drift.reference.n_images)

    def _save_picture(self, frame: Frame, decision: Decision) -> None:
        if self._save is None:
            return
        assert isinstance(frame.image, Image.Image)
        lines = [events.answer_text(decision)]
        picture = as_jpeg(with_answer(frame.image, lines))
        self._save.write(_picture_name(frame), -frame.time, picture)

    def _try(self, write: Callable[[], None]) -> None:
        """Writes a picture; a full disk is one warning, until a picture can be written again."""
        try:
            write()
        except ResourceError as error:
            if not self._disk_failed:
                _LOG.warning("%s\n  Watching goes on without pictures.", error)
            self._disk_failed = True

    def finish(self) -> None:
        """Writes what is still to be kept, and tells the numbers of frames."""
        if self._keeper is not None:
            self._try(self._keeper.finish)
        self._counts.dropped = self._source.n_dropped()
        _LOG.info("%s: %s.", self._source.name, self._counts.text())

    def _check_any(self) -> None:
        if self._counts.classified:
            return
        why = f"The first has no answer: {self._first_failed}." if self._first_failed else ""
        raise DataError(
            f"{self._source.name} has no frame that could be classified.\n"
            f"  {why or 'It is empty: record it again, or name another video.'}"
        )


def _check_folders(source: Source, settings: Settings) -> None:
    """Checks that pictures are not written into the watched folder, nor both kinds into one."""
    folders = {"save": settings.save, "keep": settings.keep}
    named = {name: path.resolve() for name, path in folders.items() if path is not None}
    if len(set(named.values())) < len(named):
        raise RecipeError(f"save and keep are both {settings.save}.\n  Name two folders.")
    for name, path in named.items():
        if source.kind == "folder" and path == Path(source.name).resolve():
            raise RecipeError(
                f"{name} is the watched folder, so its pictures would be watched, too.\n"
                "  Name another folder."
            )


def _check_scores(classifier: Classifier, settings: Settings, *, has_scores: bool) -> None:
    needs = {
        "min_score": settings.min_score is not None,
        "keep": settings.keep is not None,
        "drift": settings.drift in ("artifact", "stream"),
    }
    named = [name for name, is_needed in needs.items() if is_needed]
    if named and not has_scores:
        raise RecipeError(
            f"{named[0]} needs scores, and {classifier.artifact.path} was exported with the head"
            " argmax, which gives none.\n  Export again with the head scores."
        )


def _reference_of(classifier: Classifier, *, is_asked: bool) -> Reference | None:
    """The reference of the artifact's smoke set; None if that has too few images.

    Raises:
        DataError: it was asked for, and cannot be made.
    """
    artifact = classifier.artifact
    try:
        scored = _smoke_scores(classifier)
    except DataError as error:
        if is_asked:
            raise DataError(f"{error}\n  Take the start of the stream: --drift stream.") from error
        return None
    if len(scored) >= MIN_REFERENCE:
        return Reference(scored)
    if is_asked:
        raise DataError(
            f"The smoke set of {artifact.path} has {len(scored)} images with scores, and the drift"
            f" alarm needs {MIN_REFERENCE} to compare with.\n"
            "  Take the start of the stream: --drift stream."
        )
    return None


def _smoke_scores(classifier: Classifier) -> list[Scored]:
    """Scores of the artifact's smoke set by the file that watches."""
    names = classifier.artifact.class_names
    pixels = load_smoke_set(classifier.artifact).pixels
    images = ((str(i), Image.fromarray(one)) for i, one in enumerate(pixels))
    results = classifier.classify_many(images, top=len(names))
    return [_scored(one, names) for one in results if isinstance(one, Prediction)]


def _scored(prediction: Prediction, class_names: tuple[str, ...]) -> Scored:
    """The scores in the artifact's order."""
    by_name = {name: score or 0.0 for name, score in prediction.top}
    return Scored(np.array([by_name[name] for name in class_names]) / 100, prediction.is_none)


def _picture_name(frame: Frame) -> str:
    """A file name that tells when the frame was, or from which file it is."""
    if frame.file is not None:
        stem = re.sub(r"[^\w.-]", "_", Path(frame.file).stem)[:50].lstrip(".")
        return f"{stem or 'picture'}.jpg"
    return f"{events.clock_text(frame.time, compact=True)}-{frame.number:08d}.jpg"
