"""Finds the run or artifact that a user names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from kdedge.config.load import load_recipe
from kdedge.errors import DataError, RecipeError
from kdedge.files import home_path
from kdedge.messages import option, some_of, suggestion
from kdedge.records.evaluation import Role
from kdedge.records.record import if_readable
from kdedge.runs.folder import RunFolder, read_provenance
from kdedge.runs.provenance import Provenance
from kdedge.runtime.artifact import artifact_at, model_file_at

log = logging.getLogger(__name__)

RunOrArtifact: TypeAlias = str | PathLike[str]
"""A run or an artifact: the object, its folder, `name/NN`, or a recipe's name (newest run)."""


def runs_in(root: Path) -> Iterator[tuple[RunFolder, Provenance]]:
    """Yields every run and its provenance; skips other folders, and warns of damaged records."""
    files = root.glob("*/*/provenance.json")
    for file in sorted(files, key=lambda x: (x.parents[1], len(x.parent.name), x)):  # 100 after 99
        record = if_readable(read_provenance, file) if file.parent.name.isdecimal() else None
        if record is not None:
            yield RunFolder(file.parent, record.role), record


def finished_runs(root: Path) -> set[Path]:
    """Returns the folders of all finished runs."""
    return {run.path.resolve() for run, record in runs_in(root) if record.is_finished}


def newest_run(
    root: Path,
    name: str | None = None,
    *,
    role: Role | None = None,
    key: str | None = None,
    is_finished: bool = True,
    exported: bool = False,
) -> RunFolder | None:
    """Finds the run that finished last, or the unfinished run that began last; or None.

    Skips other folders, damaged records, and, unless `key` is given, students that a better student
    has replaced, unless that was deleted.

    Args:
        root: folder of all runs.
        name: only runs of this recipe name.
        role: only runs of this role.
        key: only runs of the job with this key.
        is_finished: only finished runs, or only unfinished ones.
        exported: only runs with an artifact.
    """
    found = list(runs_in(root))
    students = set[str]()
    for run, record in found:
        if run.role == "student" and record.is_finished:
            students.add(run.name)
    newest: RunFolder | None = None
    newest_order = ("", "")
    for run, record in found:
        if name is not None and run.path.parent.name != name:
            continue
        if role is not None and run.role != role:
            continue
        if key is None and record.replaced_by in students:
            continue
        if key is not None and record.key != key:
            continue
        if record.is_finished != is_finished or (exported and not run.newest_artifact):
            continue
        time = record.finished_at if is_finished else record.started_at
        order = (str(time), run.name)
        if newest is None or order > newest_order:
            newest = run
            newest_order = order
    return newest


def _newest_student(root: Path, name: str | None = None) -> RunFolder | None:
    """The student (of a recipe) that finished last; if there is none, the last finished run.

    Raises:
        RecipeError: there is only an unfinished student, which the caller most likely wants.
    """
    student = newest_run(root, name, role="student")
    if student is not None:
        return student
    run = newest_run(root, name)
    unfinished = newest_run(root, name, role="student", is_finished=False)
    if run is not None and unfinished is not None:
        raise RecipeError(
            f"{unfinished.path}, a student, is not finished.\n"
            f"  Finish its training with {option('--resume', 'resume=True')}, or name {run.path}"
            f" for the {run.role}."
        )
    return run


def _path_of(argument: RunOrArtifact) -> Path:
    """The path or name that an argument gives; a recipe's file stands for the name in it."""
    path = home_path(argument)
    if path.suffix not in (".yaml", ".yml"):
        return path
    return Path(load_recipe(path).recipe.name if path.is_file() else path.stem)


def find_run(argument: RunOrArtifact | None, root: Path) -> RunFolder:
    """Finds the run that a command's argument RUN names.

    Args:
        argument: a run or its folder, an artifact in it, `name/NN`, or a recipe's name, file or
            folder (its newest finished student, or any finished run if it has no student); None:
            the newest finished student, or any finished run if there is no student.
        root: folder of all runs.

    Raises:
        RecipeError: there is no such run; the message lists the known runs.
    """
    if argument is None:
        run = _newest_student(root)
        if run is None:
            raise RecipeError(
                f"There is no finished run in {root.absolute()}.\n"
                "  Train one with `kdedge distill RECIPE`, or name a run folder, or the folder of"
                f" your runs: {option('--runs DIR', 'root=DIR')}"
            )
        log.info(f"Using {run.path}, the newest finished {run.role}.")
        return run
    path = _path_of(argument)
    for folder in (path, root / path):
        exported = artifact_at(folder)
        folder = folder if exported is None else exported.resolve().parent.parent
        if (folder / "provenance.json").is_file():
            return RunFolder.open(folder)
    for folder in (root / path, path):
        run = _newest_student(folder.parent, folder.name)
        if run is not None:
            return run
    raise _unknown_run(path, root)


def named_artifact(argument: RunOrArtifact | None, root: Path) -> Path | None:
    """The artifact folder that an argument names, also as `name/NN/artifacts/NN`; or None."""
    if argument is None:
        return None
    return artifact_at(argument) or artifact_at(root / argument)


def find_artifact(argument: RunOrArtifact, root: Path, *, warns: bool = True) -> Path:
    """Finds the artifact that an argument names: its folder, or the newest artifact of a run.

    Args:
        argument: an artifact, its folder, or its artifact.json; or a run, its folder, `name/NN`,
            its folder of artifacts, or a recipe's name for its newest finished run with an
            artifact.
        root: folder of all runs.
        warns: whether to warn about a newer run of the recipe that was not exported.

    Raises:
        DataError: the argument names no artifact and no run that has one.
    """
    path = _path_of(argument)
    found = named_artifact(path, root) or named_artifact(path / "artifacts", root)
    if found is not None:
        return found
    for folder in (root / path, path):
        run = newest_run(folder.parent, folder.name, exported=True)
        if run is not None and run.newest_artifact is not None:
            last = newest_run(folder.parent, folder.name) if warns else None
            if last is not None and last.path != run.path:
                log.warning(f"{last.path} is newer than {run.path}, but was not exported.")
            return run.newest_artifact
    problem = (
        f"does not exist, and no run in {root.absolute()} has this name.\n"
        f"  {_known_runs(path, root)}"
    )
    if path.exists() or (root / path).exists():
        problem = "is not an artifact, nor a run with one."
    raise DataError(
        f"{path} {problem}\n  Name the folder that `kdedge export` wrote, or export the run first."
        " Images come after it."
    )


def _known_runs(path: Path, root: Path) -> str:
    """Suggests the run with the most similar name, or lists the runs and asks for their folder."""
    names = {run.name for run, _ in runs_in(root)}
    known = sorted(names | {name.split("/")[0] for name in names})
    listed = f"Known: {', '.join(some_of(known, 12))}." if known else "It has no runs."
    elsewhere = f"If your runs are in another folder, name it: {option('--runs DIR', 'root=DIR')}"
    return suggestion(str(path), known, f"{listed} {elsewhere}")


def _unknown_run(path: Path, root: Path) -> RecipeError:
    """The error for an argument that names no finished run."""
    runs = {run.name: str(record.status) for run, record in runs_in(root)}
    unfinished = []
    for run, status in sorted(runs.items()):
        recipe, _, _ = run.partition("/")
        if recipe == str(path):
            unfinished.append(f"{run} ({status})")
    if unfinished:
        return RecipeError(
            f"{path} has no finished run in {root.absolute()}: {', '.join(unfinished)}.\n"
            f"  Train on with {option('--resume', 'resume=True')}, or name a run with its number."
        )
    if model_file_at(path) is not None:
        return RecipeError(f"{path} is a file of an artifact.\n  Name its folder: {path.parent}")
    return RecipeError(
        f"{path} is neither a run folder nor the name of a run in {root.absolute()}.\n"
        f"  {_known_runs(path, root)}"
    )
