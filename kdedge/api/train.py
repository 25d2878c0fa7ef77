"""Training: a teacher, a student, a baseline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.recipe import AnyRecipe, Overrides, Shorthands, loaded_with
from kdedge.api.run import Run
from kdedge.config.load import check_paths

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdedge.setup.workspace import Workspace


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
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` where there is one.
        resume: go on with an interrupted run of the same teacher.
        shorthands: `epochs`, `batch_size` and `lr` of the teacher, and `seed`.

    Returns:
        The finished run.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device are missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.
    """
    from kdedge.training.teach import teach as train_teacher

    loaded = loaded_with(recipe, "teacher", overrides, shorthands)
    check_paths(loaded)
    with _workspace(root, device) as workspace:
        return Run(train_teacher(loaded, workspace, resume=resume))


def distill(
    recipe: AnyRecipe,
    *,
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
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` where there is one.
        resume: go on with interrupted runs of the same teacher and student.
        shorthands: `epochs`, `batch_size` and `lr` of the student, and `seed`.

    Returns:
        The student's finished run.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device are missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.
    """
    from kdedge.training.distill import distill as distill_student

    loaded = loaded_with(recipe, "student", overrides, shorthands)
    check_paths(loaded)
    with _workspace(root, device) as workspace:
        _, student = distill_student(loaded, workspace, resume=resume)
    return Run(student)


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
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` where there is one.
        resume: go on with an interrupted run of the same baseline.
        shorthands: `epochs`, `batch_size` and `lr` of the baseline, and `seed`.

    Returns:
        The finished run.

    Raises:
        RecipeError: the recipe is wrong, or the method learns from a teacher.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device are missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.
    """
    from kdedge.training.baseline import train_baseline

    loaded = loaded_with(recipe, "baseline", overrides, shorthands)
    check_paths(loaded)
    with _workspace(root, device) as workspace:
        return Run(train_baseline(loaded, workspace, method, resume=resume))


@contextmanager
def _workspace(root: str | Path, device: str | None) -> Iterator[Workspace]:
    """Context with where a call works, with all processes that torchrun started."""
    from kdedge.distributed import joined
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace

    chosen = choose_device(device)
    with joined(chosen) as group:
        yield Workspace(Path(root), chosen, group=group)
