"""What calls of the API begin with: the run, artifact or recipe they name; needed packages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kdedge import torchrun
from kdedge.config.load import AnyRecipe, LoadedRecipe, Overrides, load_recipe, merged
from kdedge.config.student_sizes import student_size
from kdedge.errors import DataError
from kdedge.packages import need
from kdedge.records.evaluation import Role
from kdedge.runs.find import name_of, newest
from kdedge.runs.folder import runs_folder
from kdedge.runtime.artifact import Artifact, artifact_at
from kdedge.runtime.process import warn_if_busy

if TYPE_CHECKING:
    from kdedge.api.run import Run

log = logging.getLogger(__name__)

RunOrArtifact: TypeAlias = "Run | Artifact | str | Path"
"""A run or an artifact: the object, its folder, `name/NN`, or a recipe's name (newest run)."""


def run_argument(run: RunOrArtifact | None) -> str | None:
    """The argument for `find_run` and `find_artifact`: a folder or a name; None stays None."""
    return None if run is None else str(getattr(run, "path", run))


def artifact_folder(
    artifact: RunOrArtifact, root: str | Path | None = None, *, warns: bool = True
) -> Path:
    """Finds the artifact that an argument names: its folder, or the newest artifact of a run.

    Args:
        artifact: an artifact, its folder, or its artifact.json; or a run, its folder, `name/NN`,
            its folder of artifacts, or a recipe's name for its newest finished run with an
            artifact.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        warns: whether to warn about a newer run of the recipe that was not exported.

    Raises:
        DataError: the argument names no artifact and no run that has one.
    """
    path = Path(name_of(str(run_argument(artifact)))).expanduser()
    in_runs_folder = runs_folder(root) / path
    for folder in (path, in_runs_folder):
        exported = artifact_at(folder) or artifact_at(folder / "artifacts")
        if exported is not None:
            return exported
    for folder in (in_runs_folder, path):
        run = newest(folder.parent, folder.name, exported=True)
        if run is not None:
            last = newest(folder.parent, folder.name) if warns else None
            if last is not None and last.path != run.path:
                log.warning(f"{last.path} is newer than {run.path}, but was not exported.")
            return artifact_folder(run.path)
    is_there = path.exists() or in_runs_folder.exists()
    what = "is not an artifact, nor a run with one" if is_there else "does not exist"
    raise DataError(
        f"{path} {what}.\n  Name the folder that `kdedge export` wrote, or export the run first."
        " Images come after it."
    )


def role_keys(role: Role, options: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `epochs`, `batch_size`, `lr` and `seed` into keys such as `student.optim.epochs`."""
    return {
        key if key == "seed" else f"{role}.optim.{key}": value
        for key, value in options.items()
        if value is not None
    }


def load_for(
    role: Role,
    recipe: AnyRecipe,
    overrides: Overrides | None,
    *,
    size: str | None = None,
    **options: int | float | None,
) -> LoadedRecipe:
    """Loads a recipe with a student size, overrides and the options of `role_keys`; the last wins.

    Raises:
        RecipeError: the recipe is wrong, or there is no such size.
    """
    keys = merged(overrides or {}, role_keys(role, options))
    if size is not None:
        student = load_recipe(recipe, keys).recipe.student
        method = "promptkd" if student is None else student.method
        keys = merged(student_size(size).overrides(method), keys)
    return load_recipe(recipe, keys)


def need_training_packages(purpose: str) -> None:
    """Checks that the packages of the train extra are installed; logs that PyTorch is loaded next.

    Raises:
        MissingPackage: a package is not installed.
    """
    need("torch", "torchvision", "open_clip", "tensorboard", purpose=purpose)
    warn_if_busy()
    # Loading takes seconds, on a slow disk a minute; with several processes, only rank 0 logs it
    if "torch" not in sys.modules and torchrun.rank() == 0:
        log.info("Loading PyTorch.")
