"""Trains a teacher, a student or a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.arguments import load_for, need_training_packages
from kdedge.api.run import Run
from kdedge.config.load import AnyRecipe, LoadedRecipe, Overrides, check_paths, load_recipe
from kdedge.errors import RecipeError
from kdedge.ray_workers import open_workers
from kdedge.records.evaluation import Role
from kdedge.runs.folder import runs_folder
from kdedge.runtime.process import torch_as_before

if TYPE_CHECKING:
    from kdedge.setup.workspace import Workspace
    from kdedge.training.output_store.store import OutputStore


@torch_as_before()
def teach(
    recipe: AnyRecipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
) -> Run:
    """Trains the teacher of a recipe on its labeled images and stores its class vectors.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, a `Recipe` or a `LoadedRecipe`.
        epochs: passes of the teacher over its images. None: as the recipe says.
        batch_size: images of a step. None: as the recipe says.
        lr: learning rate after warm-up. None: as the recipe says.
        seed: seed of all random draws. None: as the recipe says.
        overrides: keys of the recipe with other values, such as `{"teacher.optim.lr": 0.01}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same teacher.

    Returns:
        The finished run.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.

    Examples:
        >>> teacher = kdedge.teach("line3.yaml", epochs=2)
        >>> print(teacher.result)
    """
    loaded = load_for("teacher", recipe, overrides, epochs, batch_size, lr, seed)
    with training_workspace(loaded, root, device, warn_for=["teacher"]) as workspace:
        from kdedge.training.run_job import run_job
        from kdedge.training.teacher import teacher_job

        return Run(run_job(teacher_job(loaded, workspace), resume=resume))


@torch_as_before()
def fill_teacher_store(
    recipe: AnyRecipe,
    *,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    keep_teacher: bool = False,
    ray: bool = False,
) -> OutputStore:
    """Stores the teacher's features of `student.views` crops of each unlabeled image.

    A finished teacher of the recipe is used; a missing one is trained first. `distill` uses the
    store.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, a `Recipe` or a `LoadedRecipe`.
        overrides: keys of the recipe with other values, such as `{"student.views": 4}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same teacher.
        keep_teacher: as for `distill`, which finds only the features of the teacher that it uses.
        ray: the workers of a Ray cluster read the images and fill the store, not this process.

    Returns:
        The store; `path` is its folder.

    Raises:
        RecipeError: the recipe is wrong or has no student.views.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device are missing; or Ray, or a node of its cluster does
            not see a file.
        ResourceError: memory or disk ran out.
    """
    loaded = load_recipe(recipe, overrides)
    with training_workspace(loaded, root, device, warn_for=["teacher"], ray=ray) as workspace:
        from kdedge.training.distill import store_features

        return store_features(loaded, workspace, resume=resume, keep_teacher=keep_teacher)


@torch_as_before()
def distill(
    recipe: AnyRecipe,
    *,
    size: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    keep_teacher: bool = False,
) -> Run:
    """Distills the student of a recipe on unlabeled images; trains its teacher first if needed.

    A finished teacher with the same settings and data is used again. Its run is the result's
    `teacher`.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, a `Recipe` or a `LoadedRecipe`.
        size: `nano`, `small` or `base`, a student in place of the recipe's.
        epochs: passes of the student over its images. None: as the recipe says.
        batch_size: images of a step. None: as the recipe says.
        lr: learning rate after warm-up. None: as the recipe says.
        seed: seed of all random draws. None: as the recipe says.
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue interrupted runs of the same teacher and student.
        keep_teacher: use a trained teacher even if zero-shot CLIP or a ridge regression on its
            backbone is better on the labeled images.

    Returns:
        The student's finished run.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.

    Examples:
        >>> student = kdedge.distill("line3.yaml", epochs=2)
        >>> print(student.headline)

        A ridge regression on the student's features needs one pass over the images:

        >>> ridge = {"student.method": "ridge", "student.settings": {}, "student.views": 1}
        >>> print(kdedge.distill("line3.yaml", overrides=ridge))
    """
    loaded = load_for("student", recipe, overrides, epochs, batch_size, lr, seed, size=size)
    with training_workspace(loaded, root, device, warn_for=["teacher", "student"]) as workspace:
        from kdedge.training.distill import distill_student

        return Run(distill_student(loaded, workspace, resume=resume, keep_teacher=keep_teacher))


@torch_as_before()
def train(
    recipe: AnyRecipe,
    method: str | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
) -> Run:
    """Trains a baseline: a method on the student's backbone, without a teacher.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, a `Recipe` or a `LoadedRecipe`.
        method: its name, such as `promptsrc`; None for the recipe's `baseline.method`.
        epochs: passes of the baseline over its images. None: as the recipe says.
        batch_size: images of a step. None: as the recipe says.
        lr: learning rate after warm-up. None: as the recipe says.
        seed: seed of all random draws. None: as the recipe says.
        overrides: keys of the recipe with other values, such as `{"baseline.settings.n_ctx": 16}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same baseline.

    Returns:
        The finished run.

    Raises:
        RecipeError: the recipe is wrong, or the method learns from a teacher.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        DivergedError: the loss is not finite.
        ResourceError: memory or disk ran out.
    """
    loaded = load_for("baseline", recipe, overrides, epochs, batch_size, lr, seed)
    with training_workspace(loaded, root, device) as workspace:
        from kdedge.setup.method import warn_of_unused_optim
        from kdedge.training.run_job import run_job
        from kdedge.training.teacher import baseline_job, with_baseline

        loaded = with_baseline(loaded, method)
        warn_of_unused_optim(loaded, "baseline")
        return Run(run_job(baseline_job(loaded, workspace), resume=resume))


@contextmanager
def training_workspace(
    loaded: LoadedRecipe,
    root: str | Path | None,
    device: str | None,
    *,
    ray: bool = False,
    warn_for: Sequence[Role] = (),
) -> Iterator[Workspace]:
    """Context with the workspace of a training call, joined to torchrun's other processes.

    Warns about each `--set optim.KEY` that has no effect on the roles of `warn_for`.
    """
    check_paths(loaded)
    need_training_packages("Training")
    import torch

    from kdedge.distributed import joined
    from kdedge.setup.method import trained_roles, warn_of_unused_optim
    from kdedge.setup.workspace import Workspace, set_up_device

    chosen = set_up_device(device)
    with torch.enable_grad(), joined(chosen) as group:
        if group.world_size > 1 and ray:
            raise RecipeError(
                f"torchrun has started {group.world_size} processes, and Ray starts its"
                " own.\n  Run the command without torchrun."
            )
        warn_of_unused_optim(loaded, *(role for role in trained_roles(loaded) if role in warn_for))
        with open_workers(device) if ray else nullcontext() as workers:
            yield Workspace(runs_folder(root), chosen, group=group, ray_workers=workers)
