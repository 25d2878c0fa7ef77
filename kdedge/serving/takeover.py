"""Looks for a new artifact in the place of the served one, checks it, and serves it instead."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdedge.deploy.parity import SMOKE_SET, gate_error, misses, parity_on_smoke_set
from kdedge.errors import KdedgeError
from kdedge.inference.classify import Classifier
from kdedge.runtime.artifact import Artifact
from kdedge.serving.model import CurrentModel, ServedModel

_LOG = logging.getLogger(__name__)

_Stamp = tuple[object, ...]


@dataclass(frozen=True)
class ArtifactSource:
    """Where the artifact is, and how it is loaded.

    Attributes:
        find: gives the artifact's folder; of a run, the newest one.
        load: loads an artifact.
        batch: largest batch that requests are joined to; None for the artifact's.
    """

    find: Callable[[], Path]
    load: Callable[[Path], Classifier]
    batch: int | None = None


class Takeover:
    """A thread that replaces the served model whenever the artifact has changed.

    A changed artifact is loaded beside the old one once its files stay the same from one look to
    the next. It is refused if it is damaged or differs from its own smoke set; the old one is
    served on.

    Args:
        source: of the artifact.
        current: the served model, which was just loaded.
        on_outcome: called with `taken` or `refused` for each new artifact.
        every_s: seconds between two looks.
    """

    def __init__(
        self,
        source: ArtifactSource,
        current: CurrentModel,
        on_outcome: Callable[[str], None],
        *,
        every_s: float = 1.0,
    ) -> None:
        self._source, self._current, self._on_outcome = source, current, on_outcome
        self._every_s, self._ends = every_s, threading.Event()
        self._seen = self._tried = self._stamp()
        self._thread = threading.Thread(target=self._watch, name="takeover", daemon=True)
        self._thread.start()

    def close(self, *, patience_s: float) -> None:
        """Ends the thread; one that is still loading is left alone after so many seconds."""
        self._ends.set()
        self._thread.join(patience_s)

    def _watch(self) -> None:
        while not self._ends.wait(self._every_s):
            before, self._seen = self._seen, self._stamp()
            if self._seen not in (before, self._tried):
                continue  # somebody is still writing
            if self._seen != self._tried:
                self._tried = self._seen
                self._try()

    def _stamp(self) -> _Stamp:
        """Changes with the folder and with each of its files."""
        try:
            folder = self._source.find().resolve()
            stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
        except (OSError, KdedgeError) as error:
            return (str(error),)
        return (folder, *((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))

    def _try(self) -> None:
        try:
            path = self._source.find()
            model = load_checked(self._source, path)
        except Exception as error:  # whatever it is, the old model goes on
            _LOG.error(
                "The new artifact is refused, and the old one is served on.\n  %s",
                str(error) or type(error).__name__,
            )
            self._on_outcome("refused")
            return
        if self._ends.is_set():  # nobody waits for it any more
            model.replaced()
            return
        self._current.replace(model)
        self._on_outcome("taken")
        _LOG.info("Serving the new artifact %s: %s.", path, model.describe())


def load_checked(source: ArtifactSource, path: Path) -> ServedModel:
    """Loads an artifact and compares it with its smoke set.

    Raises:
        DataError: it is damaged.
        GateError: it misses the gates that the export set.
        SetupError: this machine cannot run it.
    """
    classifier = source.load(path)
    try:
        _check(classifier)
        model = ServedModel(classifier, source.batch)
        model.warm_up()
    except BaseException:
        classifier.backend.close()
        raise
    return model


def _check(classifier: Classifier) -> None:
    artifact: Artifact = classifier.artifact
    file = classifier.file
    if SMOKE_SET not in artifact.others:
        _LOG.warning("%s has no smoke set: its answers were not compared.", artifact.path)
        return
    result = parity_on_smoke_set(artifact, classifier.backend)
    missed = misses(result, file.precision, artifact.gates)
    if missed and file.gate != "missed":  # one that missed before was asked for
        raise gate_error(file.name, file.precision, result, missed)
