"""Run folders `runs/<name>/<NN>/`: one per training, never overwritten."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from kdedge import __version__
from kdedge.errors import RecipeError, explaining_writes
from kdedge.files import (
    highest_number,
    home_path,
    new_folder,
    sha256_file,
    write_atomic,
    write_json,
)
from kdedge.locks import is_locked, lock_file
from kdedge.packages import installed_version
from kdedge.records.evaluation import Role
from kdedge.records.record import if_readable, read_record
from kdedge.runs.provenance import Provenance
from kdedge.runtime.artifact import ARTIFACT_FILE

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "safetensors")


def runs_folder(root: str | Path | None, *runs: Any) -> Path:
    """The folder of all runs: `root`, else that of the first `Run`, KDEDGE_RUNS, or `runs`."""
    run_root = next((run.folder.root for run in runs if hasattr(run, "folder")), None)
    return home_path(root or run_root or os.environ.get("KDEDGE_RUNS") or "runs")


class _File:
    """Descriptor that gives the path of a file in a run's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: TrainingFolder, kind: type[TrainingFolder]) -> Path:
        return owner.path / self._name


@dataclass(frozen=True)
class TrainingFolder:
    """The files of one training: of a run, or of a round of a run.

    Attributes:
        path: the folder.
        role: role of the trained model.
    """

    path: Path
    role: Role

    metrics = _File("metrics.jsonl")  # metrics of steps and epochs, one JSON object per line
    checkpoints = _File("checkpoints")  # folder of the two newest checkpoints


class RunFolder(TrainingFolder):
    """The files of one run."""

    recipe = _File("recipe.yaml")  # resolved: defaults and overrides are filled in
    provenance = _File("provenance.json")  # command, versions, device, seed, hashes, times, status
    log = _File("log.txt")  # messages and tracebacks
    skipped = _File("skipped.csv")  # unreadable images, with the reasons
    class_vectors = _File("class_vectors.safetensors")  # in class-list order
    evaluation = _File("eval.json")
    evaluation_details = _File("eval_details.json")  # confusions and calibration bins
    unlabeled_evaluation = _File("eval_unlabeled.json")  # measurements on images without labels
    logit_adjustment = _File("balance.json")  # offsets of the logits
    references = _File("references.json")  # what a teacher is compared with, and its own accuracy
    _lock_file = _File(".lock")

    @classmethod
    def create(
        cls, root: Path, name: str, *, role: Role, recipe_text: str, provenance: Mapping[str, Any]
    ) -> RunFolder:
        """Creates the next folder of a name and writes the recipe and the provenance.

        Args:
            root: folder of all runs.
            name: the recipe's name.
            role: role of the model to train.
            recipe_text: the resolved recipe.
            provenance: device, seed, hashes and other inputs of this run, as plain values.

        Raises:
            ResourceError: the folder may not be written, or the disk is full.
        """
        with new_folder(root / name, is_numbered=True) as new:
            run = cls(new.part, role)
            run.checkpoints.mkdir()
            write_atomic(run.recipe, recipe_text.encode())
            record = {
                "role": role,
                "status": "running",
                "started_at": _now(),
                "finished_at": None,
                **_process_record(),
                **provenance,
            }
            write_json(run.provenance, record)
        return cls(new.final, role)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Opens a folder that `create` made.

        Raises:
            RecipeError: the folder is not a run folder.
            DataError: its provenance.json is damaged.
        """
        file = path / "provenance.json"
        if not file.is_file():
            raise RecipeError(
                f"{path} is not a run folder: it has no provenance.json.\n  `kdedge runs` lists"
                " the runs."
            )
        return cls(path, read_provenance(file).role)

    @property
    def name(self) -> str:
        """The recipe's name and the run's number, as in `line3/02`."""
        return f"{self._place.parent.name}/{self._place.name}"

    @property
    def root(self) -> Path:
        """The folder of all runs, which contains this one as `<name>/<NN>`."""
        return self._place.parents[1]

    @property
    def _place(self) -> Path:
        """Its place among the runs, also if the folder is a link to another disk."""
        path = self.path.absolute()
        return path if path.name.isdecimal() else path.resolve()

    @property
    def weights(self) -> Path:
        """The trained tensors, named after the run's role: `teacher.safetensors`."""
        return self.path / f"{self.role}.safetensors"

    @property
    def artifacts(self) -> list[Path]:
        """Folders of the run's artifacts, sorted by number."""
        found = (file.parent for file in self.path.glob("artifacts/*/artifact.json"))
        return sorted(found, key=lambda x: (len(x.name), x))

    @property
    def newest_artifact(self) -> Path | None:
        """The folder in `artifacts` with the highest number; None if there is none."""
        return highest_number(self.artifacts)

    @property
    def changed_artifacts(self) -> list[Path]:
        """Artifacts whose `artifact.json` was changed, but not by kdedge; see `recorded_export`."""
        known = _recorded_exports(self.path)
        hashes = {folder: sha256_file(folder / ARTIFACT_FILE) for folder in self.artifacts}
        return [one for one, found in hashes.items() if known.get(one.name, found) != found]

    @property
    def sizes(self) -> dict[Path, int]:
        """The bytes of every file except the lock; a training may delete some meanwhile."""
        sizes: dict[Path, int] = {}
        for folder, _, names in os.walk(self.path):  # passes over folders that are gone
            for path in (Path(folder, name) for name in names if name != ".lock"):
                with contextlib.suppress(OSError):
                    sizes[path] = path.stat().st_size
        return sizes

    def round_folder(self, number: int) -> TrainingFolder:
        """The folder of a round (from 1) of a method's own training; created if missing.

        The report shows the metrics of the last round.
        """
        folder = TrainingFolder(self.path / "rounds" / f"{number:02d}", self.role)
        with explaining_writes(folder.checkpoints):
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        return folder

    def name_in(self, root: Path) -> str:
        """`name/NN` if `root` contains the run, else its absolute path."""
        return self.name if self.root.resolve() == root.resolve() else str(self.path.resolve())

    def read_provenance(self) -> Provenance:
        """Reads provenance.json.

        Raises:
            DataError: the file is damaged.
        """
        return read_provenance(self.provenance)

    def teacher_folder(self) -> RunFolder | None:
        """The run of a student's teacher; None for other runs and if the teacher has no run.

        Raises:
            RecipeError: the teacher's run is missing.
            DataError: a record is damaged.
        """
        name = self.read_provenance().teacher_run
        root = self.root
        current = Path.cwd()
        if not self.path.is_absolute() and root.is_relative_to(current):
            root = root.relative_to(current)
        return None if name is None else RunFolder.open(root / name)

    @property
    def is_finished(self) -> bool:
        """Whether `finish` was called."""
        return self.read_provenance().is_finished

    def finish(self, *, measured_on: str | None = None, **summary: Any) -> None:
        """Records that the run is complete.

        Args:
            measured_on: hash of the test images, which may have changed since the run began.
            summary: main results, as plain values.
        """
        images = {} if measured_on is None else {"measured_on": measured_on}
        self.update(status="finished", finished_at=_now(), summary=summary, **images)

    def mark(self, status: Literal["interrupted", "failed"]) -> None:
        """Records how an attempt at the run ended; a finished run stays finished."""
        if not self.is_finished:
            self.update(status=status)

    def resume(self, **where: str | int) -> None:
        """Records that the run goes on, with time, command, versions and platform of this process.

        Args:
            where: device, processes and threads.
        """
        entry = {"resumed_at": _now(), **_process_record(), **where}
        before = self.read_provenance().to_dict().get("resumed", [])
        self.update(status="running", resumed=[*before, entry])

    def update(self, **changes: Any) -> None:
        """Changes keys of provenance.json."""
        write_json(self.provenance, {**self.read_provenance().to_dict(), **changes})

    @property
    def is_in_use(self) -> bool:
        """Whether a process uses this folder now."""
        return is_locked(self._lock_file)

    def lock(self) -> AbstractContextManager[None]:
        """Context in which no other process can use this folder.

        Raises:
            InUseError: another process holds it.
            ResourceError: the folder may not be written.
        """
        remedy = "Wait for it or stop it; a new run gets its own folder."
        return lock_file(self._lock_file, remedy=remedy)


def read_provenance(file: Path) -> Provenance:
    """Reads a run's provenance.json.

    Raises:
        DataError: the file is damaged.
    """
    remedy = "It is the record of this run: restore it from a copy, or train again."
    return read_record(Provenance, file, remedy=remedy)


@contextlib.contextmanager
def recorded_export(artifact: Path, *, is_new: bool = False) -> Iterator[None]:
    """Context in which kdedge writes an artifact's record; its hash is then written into its run.

    The hash is kept if something else has changed the record of an artifact that is not new, such
    as a write that was killed before this context ended. An artifact outside of a run has no hash.
    """
    # `artifacts`, or the artifact itself, may be a link to another disk
    runs: dict[Path, str] = {}
    for place in (artifact.absolute(), artifact.resolve()):
        run = place.parent.parent
        if place.parent.name == "artifacts" and (run / "provenance.json").is_file():
            runs[run] = place.name
    before = sha256_file(artifact / ARTIFACT_FILE)
    if is_new:  # a deleted artifact may have had this number
        for run, name in runs.items():
            write_json(run / "exports.json", {**_recorded_exports(run), name: before})
    try:
        yield
    finally:
        now = sha256_file(artifact / ARTIFACT_FILE)
        for run, name in runs.items():
            known = _recorded_exports(run)
            if known.get(name, before) == before != now:
                write_json(run / "exports.json", {**known, name: now})


def _recorded_exports(run: Path) -> dict[str, str]:
    """The hashes that `recorded_export` wrote: artifact name -> SHA-256."""
    file = run / "exports.json"
    if not file.exists():
        return {}
    return if_readable(read_record, dict[str, str], file) or {}


def command_line() -> list[str]:
    """The command of this process as a user types it; `notebook` for a Jupyter kernel."""
    program, *arguments = sys.argv
    path = Path(program)
    if path.name.endswith("kernel_launcher.py"):  # the kernel of Jupyter or Colab
        return ["notebook"]
    # A suite runs its cells as `python -m kdedge`
    is_kdedge = path.name == "kdedge" or path.parts[-2:] == ("kdedge", "__main__.py")
    return ["kdedge" if is_kdedge else path.name, *arguments]


def _process_record() -> dict[str, Any]:
    """Command, versions and platform of this process."""
    return {
        "command": command_line(),
        "versions": {
            "kdedge": __version__,
            "python": platform.python_version(),
            **{package: installed_version(package) for package in _PACKAGES},
        },
        "platform": platform.platform(),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Context that also writes kdedge's messages, and the traceback of an error, to a file."""
    logger = logging.getLogger("kdedge")
    with explaining_writes(path):
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    others = _OtherHandlers(logger.getEffectiveLevel())
    level = logger.level
    logger.setLevel(min(others.level, logging.INFO))
    if logger.propagate and (logging.getLogger().handlers or not logger.handlers):
        # Without it, the logger would print warnings that kdedge's own handlers print
        logger.addHandler(others)
    logger.addHandler(handler)
    propagate = logger.propagate
    logger.propagate = False
    try:
        yield
    except BaseException as error:
        # Written to the file only; the caller decides what to show
        name = type(error).__name__
        cause = (type(error), error, error.__traceback__)
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s", (name,), cause)
        handler.handle(record)
        vars(error)["run_log"] = path  # the command line's message names this file
        raise
    finally:
        logger.propagate = propagate
        logger.removeHandler(others)
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


class _OtherHandlers(logging.Handler):
    """Passes on what the handlers above kdedge's logger would get without a log file."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().callHandlers(record)


class _LogFile(logging.FileHandler):
    """A log file that stays silent if it cannot be written, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
