"""Trains a teacher, a student or a baseline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.recipe import AnyRecipe, Overrides, Shorthands, loaded_with, with_size
from kdedge.api.run import Run
from kdedge.config.load import LoadedRecipe
from kdedge.config.paths import check_paths
from kdedge.errors import RecipeError
from kdedge.runs.find import finished_runs
from kdedge.runs.folder import RunFolder
from kdedge.setup.packages import need_training_packages
from kdedge.workers.open import open_workers
from kdedge.workers.protocol import EngineName

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdedge.setup.workspace import Workspace
    from kdedge.training.teacher_store.store import TeacherStore


@dataclass(frozen=True)
class Place:
    """Folder of runs and device of a call that trains.

    Attributes:
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue interrupted runs of the same models.
        engine: who reads images and fills teacher stores.
    """

    root: Path
    device: str | None
    resume: bool
    engine: EngineName = "local"


@dataclass(frozen=True)
class Trained:
    """The result of a call that trains.

    Attributes:
        runs: the finished runs; a student's teacher comes first.
        used: folders of the runs that were finished before.
        is_rank0: whether this process prints, of all that torchrun started.
        store: the teacher store that was filled.
    """

    runs: tuple[RunFolder, ...]
    used: set[Path]
    is_rank0: bool
    store: TeacherStore | None = None


def teach(
    recipe: AnyRecipe,
    *,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
    **shorthands: Unpack[Shorthands],
) -> Run:
    """Trains the teacher of a recipe on its labeled images and stores its class vectors.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        overrides: keys of the recipe with other values, such as `{"teacher.optim.lr": 0.01}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same teacher.
        shorthands: `epochs`, `batch_size` and `lr` of the teacher, and `seed`.

    Returns:
        The finished run.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.
    """
    loaded = loaded_with(recipe, "teacher", overrides, shorthands)
    return Run(make_teacher(loaded, Place(Path(root), device, resume)).runs[0])


def fill_teacher_store(
    recipe: AnyRecipe,
    *,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
    engine: EngineName = "local",
    **shorthands: Unpack[Shorthands],
) -> TeacherStore:
    """Stores the teacher's features of `student.views` crops of each unlabeled image.

    A finished teacher of the recipe is used; a missing one is trained first. `distill` uses the
    store.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        overrides: keys of the recipe with other values, such as `{"student.views": 4}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same teacher.
        engine: who reads the images and fills the stores: this process, or the workers of a Ray
            cluster.
        shorthands: `epochs`, `batch_size` and `lr` of the teacher, and `seed`.

    Returns:
        The store; `path` is its folder.

    Raises:
        RecipeError: the recipe is wrong or has no student.views.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device are missing; or Ray, or a node of its cluster does
            not see a file.
        ResourceError: memory or disk ran out.
    """
    loaded = loaded_with(recipe, "teacher", overrides, shorthands)
    place = Place(Path(root), device, resume, engine)
    store = make_teacher(loaded, place, is_stored=True).store
    assert store is not None
    return store


def distill(
    recipe: AnyRecipe,
    *,
    size: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
    **shorthands: Unpack[Shorthands],
) -> Run:
    """Distills the student of a recipe on unlabeled images; trains its teacher first if needed.

    A finished teacher with the same settings and data is used again. Its run is the result's
    `teacher`.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        size: `nano`, `small` or `base`, a student in place of the recipe's.
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue interrupted runs of the same teacher and student.
        shorthands: `epochs`, `batch_size` and `lr` of the student, and `seed`.

    Returns:
        The student's finished run.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.
    """
    loaded = loaded_with(recipe, "student", with_size(overrides, size), shorthands)
    return Run(make_student(loaded, Place(Path(root), device, resume)).runs[-1])


def train(
    recipe: AnyRecipe,
    method: str | None = None,
    *,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
    **shorthands: Unpack[Shorthands],
) -> Run:
    """Trains a baseline: a method on the student's backbone, without a teacher.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        method: its name, such as `coop`; None for the recipe's `baseline.method`.
        overrides: keys of the recipe with other values, such as `{"baseline.settings.n_ctx": 16}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same baseline.
        shorthands: `epochs`, `batch_size` and `lr` of the baseline, and `seed`.

    Returns:
        The finished run.

    Raises:
        RecipeError: the recipe is wrong, or the method learns from a teacher.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.
    """
    loaded = loaded_with(recipe, "baseline", overrides, shorthands)
    return Run(make_baseline(loaded, Place(Path(root), device, resume), method).runs[-1])


def make_teacher(loaded: LoadedRecipe, place: Place, *, is_stored: bool = False) -> Trained:
    """Trains a recipe's teacher.

    Args:
        loaded: the recipe.
        place: folder of runs, device, and whether to resume.
        is_stored: also fill the teacher store; a finished teacher is then used again.
    """
    with _ready(loaded, place) as (workspace, used):
        from kdedge.setup.unused_optim import trained_roles, warn_of_unused_optim
        from kdedge.training.distill import store_features
        from kdedge.training.teach import teach as train_teacher

        warn_of_unused_optim(loaded, *(role for role in trained_roles(loaded) if role == "teacher"))
        store: TeacherStore | None = None
        if is_stored:
            run, store = store_features(loaded, workspace, resume=place.resume)
            used |= _given(loaded, run)
        else:
            run = train_teacher(loaded, workspace, resume=place.resume)
    return Trained((run,), used, workspace.group.is_rank0, store)


def make_student(loaded: LoadedRecipe, place: Place) -> Trained:
    """Trains a recipe's student, and its teacher first if needed."""
    with _ready(loaded, place) as (workspace, used):
        from kdedge.setup.unused_optim import trained_roles, warn_of_unused_optim
        from kdedge.training.distill import distill as distill_student

        warn_of_unused_optim(loaded, *trained_roles(loaded))
        teacher, student = distill_student(loaded, workspace, resume=place.resume)
    runs = (student,) if teacher is None else (teacher, student)
    return Trained(runs, used | _given(loaded, teacher), workspace.group.is_rank0)


def make_baseline(loaded: LoadedRecipe, place: Place, method: str | None) -> Trained:
    """Trains a baseline of a recipe; None for the method that the recipe names."""
    with _ready(loaded, place) as (workspace, used):
        from kdedge.setup.unused_optim import warn_of_unused_optim
        from kdedge.training.baseline import train_baseline, with_baseline

        warn_of_unused_optim(with_baseline(loaded, method), "baseline")
        run = train_baseline(loaded, workspace, method, resume=place.resume)
    return Trained((run,), used, workspace.group.is_rank0)


@contextmanager
def _ready(loaded: LoadedRecipe, place: Place) -> Iterator[tuple[Workspace, set[Path]]]:
    """Context with the workspace of a call that trains, joined with torchrun's other processes.

    It also gives the folders of the runs that are finished already.
    """
    check_paths(loaded)
    need_training_packages("Training")
    from kdedge.distributed import joined
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace

    used = finished_runs(place.root)
    chosen = choose_device(place.device)
    with joined(chosen) as group:
        if group.world_size > 1 and place.engine != "local":
            raise RecipeError(
                f"torchrun has started {group.world_size} processes, and the engine {place.engine}"
                " starts its own.\n  Run the command without torchrun."
            )
        with open_workers(place.engine, place.device) as workers:
            yield Workspace(place.root, chosen, group=group, workers=workers), used


def _given(loaded: LoadedRecipe, teacher: RunFolder | None) -> set[Path]:
    """The teacher that a recipe names, which may be in another folder of runs."""
    spec = loaded.recipe.teacher
    is_named = teacher is not None and spec is not None and spec.run is not None
    return {teacher.path.resolve()} if teacher is not None and is_named else set()
