"""Run folders: `runs/<name>/<NN>/`, one for each training, never overwritten."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from kdedge import __version__
from kdedge._files import explain_os_error, new_numbered_folder, read_json, write_atomic, write_json
from kdedge.errors import DataError, RecipeError, ResourceError

Kind = Literal["teacher", "student"]
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """One run's files.

    Attributes:
        path: the folder.
        kind: what was trained in it.
    """

    path: Path
    kind: Kind

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        *,
        kind: Kind,
        recipe_text: str,
        provenance: Mapping[str, Any],
    ) -> RunFolder:
        """Makes the next folder of a name and writes what is known before training.

        Args:
            root: folder of all runs.
            name: the recipe's name.
            kind: what will be trained.
            recipe_text: the resolved recipe, which runs again as it is.
            provenance: device, seed, hashes and whatever else made this run; plain values.

        Raises:
            ResourceError: the folder may not be written, or the disk is full.
        """
        if name in {"", ".", ".."} or Path(name).name != name:
            raise RecipeError(
                f"name is {name!r}, which cannot be a folder.\n  Choose another name."
            )
        run = cls(new_numbered_folder(root / name), kind)
        try:
            run.checkpoints.mkdir()
            write_atomic(run.recipe, recipe_text.encode())
            # Last: a folder without this file is not a run
            write_json(run.provenance, _first_record(kind, provenance))
        except BaseException as error:
            shutil.rmtree(run.path, ignore_errors=True)
            if isinstance(error, OSError):
                raise explain_os_error(error, run.checkpoints) from error
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Opens a folder that `create` made.

        Raises:
            RecipeError: it is none.
            DataError: its provenance.json is damaged.
        """
        file = path / "provenance.json"
        if not file.is_file():
            raise RecipeError(f"{path} is not a run folder: it has no provenance.json.")
        record = _read_record(file)
        kind = record.get("kind") if isinstance(record, dict) else None
        if kind not in {"teacher", "student"}:
            raise DataError(f"{file} is not the record of a run: its kind is {kind!r}.")
        return cls(path, kind)

    @property
    def name(self) -> str:
        """The recipe's name and the run's number, as in `line3/02`."""
        return f"{self.path.resolve().parent.name}/{self.path.resolve().name}"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Command, versions, device, seed, hashes, times, status."""
        return self.path / "provenance.json"

    @property
    def log(self) -> Path:
        """Messages and tracebacks."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """Figures of steps and epochs, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        """Unreadable images and why."""
        return self.path / "skipped.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of the two newest checkpoints."""
        return self.path / "checkpoints"

    @property
    def class_vectors(self) -> Path:
        """Class vectors in class-list order."""
        return self.path / "class_vectors.safetensors"

    @property
    def weights(self) -> Path:
        """What was trained: `teacher.safetensors` or `student.safetensors`."""
        return self.path / f"{self.kind}.safetensors"

    @property
    def evaluation(self) -> Path:
        """The evaluation's record."""
        return self.path / "eval.json"

    def read_provenance(self) -> dict[str, Any]:
        """Gives provenance.json."""
        record = _read_record(self.provenance)
        if not isinstance(record, dict):
            raise DataError(f"{self.provenance} is not the record of a run.")
        return record

    @property
    def is_finished(self) -> bool:
        """Whether `finish` was called."""
        return self.read_provenance().get("status") == "finished"

    def finish(self, **summary: Any) -> None:
        """Records that everything of the run is written.

        Args:
            summary: results worth a place in the record; plain values.
        """
        record = {"status": "finished", "finished_at": _now(), "summary": summary}
        write_json(self.provenance, {**self.read_provenance(), **record})

    def mark(self, status: Literal["running", "interrupted", "failed"]) -> None:
        """Records how the run stands; a finished run stays finished."""
        if not self.is_finished:
            write_json(self.provenance, {**self.read_provenance(), "status": status})

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def is_in_use(self) -> bool:
        """Whether a process works in this folder now."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False  # noqa: TRY300 - the lock is what was tried
        except OSError:
            return True
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Context in which no other process can work in this folder.

        The operating system holds the lock: whatever ends this process frees it.

        Raises:
            ResourceError: another process holds it, or the folder may not be written.
        """
        path = self._lock_file
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise explain_os_error(error, path) from error
        held = [descriptor]

        def let_go() -> None:
            while held:
                os.close(held.pop())

        try:
            _take_lock(descriptor, path)
            # A forked data worker that outlives this process would keep the lock for itself
            os.register_at_fork(after_in_child=let_go)
            yield
        finally:
            held.clear()
            os.close(descriptor)

    @contextlib.contextmanager
    def logging_to_file(self) -> Iterator[None]:
        """Context in which kdedge's messages, and the traceback of what ends it, go to log.txt."""
        logger = logging.getLogger("kdedge")
        try:
            handler = _LogFile(self.log, encoding="utf-8")
        except OSError as error:
            raise explain_os_error(error, self.log) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        level = logger.level
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        logger.addHandler(handler)
        try:
            yield
        except BaseException as error:
            # To the file alone: who calls decides what is shown
            record = logger.makeRecord(
                logger.name, logging.ERROR, __file__, 0, "%s", (type(error).__name__,),
                (type(error), error, error.__traceback__),
            )  # fmt: skip
            handler.handle(record)
            vars(error)["run_log"] = self.log  # where who reports the error finds its traceback
            raise
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, without tracebacks of its own on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def runs_in(root: Path) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Yields every run and its provenance; passes over what is no run or has a damaged record."""
    for file in sorted(root.glob("*/*/provenance.json")):
        if not file.parent.name.isdigit():
            continue
        with contextlib.suppress(DataError, RecipeError):
            run = RunFolder.open(file.parent)
            yield run, run.read_provenance()


def newest(
    root: Path, name: str | None = None, *, finished: bool = True, kind: Kind | None = None
) -> RunFolder | None:
    """Finds the run that finished last, or None.

    Folders that are no runs, or whose record is damaged, are passed over.

    Args:
        root: folder of all runs.
        name: only runs of this recipe name.
        finished: only finished runs; else those that started last count too.
        kind: only runs of this kind.
    """
    found = [
        (str(record.get("finished_at") or record.get("started_at")), run.name, run)
        for run, record in runs_in(root)
        if (name is None or run.path.parent.name == name)
        and (kind is None or run.kind == kind)
        and (not finished or record.get("status") == "finished")
    ]
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def find_run(argument: str | None, root: Path) -> RunFolder:
    """Finds the run that a command's RUN argument means.

    Args:
        argument: a run folder, `name/NN`, or a recipe's name or its folder (its newest finished
            run); None for the newest finished student, and where there is none any finished run.
        root: folder of all runs.

    Raises:
        RecipeError: there is no such run; the message says what there is.
    """
    if argument is None:
        run = newest(root, kind="student") or newest(root)
        if run is None:
            raise RecipeError(
                f"There is no finished run in {root}.\n"
                "  Train one with `kdedge distill RECIPE`, or name a run folder."
            )
        return run
    for path in (Path(argument).expanduser(), root / argument):
        if (path / "provenance.json").is_file():
            return RunFolder.open(path)
    for path in (root / argument, Path(argument).expanduser()):
        run = newest(path.parent, path.name)
        if run is not None:
            return run
    raise _unknown_run(argument, root)


def _unknown_run(argument: str, root: Path) -> RecipeError:
    runs = {run.name: str(record.get("status")) for run, record in runs_in(root)}
    own = [f"{name} ({status})" for name, status in runs.items() if name.split("/")[0] == argument]
    if own:
        return RecipeError(
            f"{argument} has no finished run in {root}: {', '.join(sorted(own))}.\n"
            "  Let one of them finish, or name it with its number to use it as it is."
        )
    known = sorted(runs.keys() | {name.split("/")[0] for name in runs})
    near = get_close_matches(argument, known, n=3, cutoff=0.5)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    return RecipeError(
        f"{argument} is neither a run folder nor the name of a run in {root}.\n"
        f"  {guess}There: {', '.join(known[:12]) or 'no run'}{', ...' if len(known) > 12 else ''}."
    )


def _read_record(file: Path) -> Any:
    try:
        return read_json(file)
    except DataError as error:
        raise DataError(
            f"{error}\n  It is the record of this run: put it back from a copy, or train again."
        ) from error


def _take_lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise explain_os_error(error, path) from error
        raise ResourceError(
            f"{path.parent} is in use by another process: {_holder(descriptor)}.\n"
            "  Wait for it or stop it; a new run gets a folder of its own."
        ) from error


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "pid unknown"


def _first_record(kind: Kind, provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": kind,
        "status": "running",
        "command": sys.argv,
        "started_at": _now(),
        "finished_at": None,
        "versions": {
            "kdedge": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "platform": platform.platform(),
        **provenance,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
