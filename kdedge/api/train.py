"""Checks a recipe; trains a teacher, a student or a baseline; labels images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.recipe import AnyRecipe, Overrides, load_for
from kdedge.api.run import Run
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.config.paths import check_paths
from kdedge.errors import RecipeError
from kdedge.setup.packages import need_training_packages
from kdedge.workers import EngineName, open_workers

if TYPE_CHECKING:
    from kdedge.setup.workspace import Workspace
    from kdedge.training.label_pool import LabeledPool
    from kdedge.training.preflight import Preflight
    from kdedge.training.teacher_store.store import TeacherStore


def teach(
    recipe: AnyRecipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
) -> Run:
    """Trains the teacher of a recipe on its labeled images and stores its class vectors.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        epochs: passes of the teacher over its images; None for the recipe's, as below.
        batch_size: images of a step.
        lr: learning rate after warm-up.
        seed: of all random draws.
        overrides: keys of the recipe with other values, such as `{"teacher.optim.lr": 0.01}`.
        root: folder of all runs.
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
    """
    loaded = load_for(
        "teacher", recipe, overrides, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
    )
    with _ready(loaded, root, device) as workspace:
        from kdedge.setup.method import trained_roles, warn_of_unused_optim
        from kdedge.training.teach import teach as train_teacher

        warn_of_unused_optim(loaded, *(role for role in trained_roles(loaded) if role == "teacher"))
        return Run(train_teacher(loaded, workspace, resume=resume))


def fill_teacher_store(
    recipe: AnyRecipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
    engine: EngineName = "local",
) -> TeacherStore:
    """Stores the teacher's features of `student.views` crops of each unlabeled image.

    A finished teacher of the recipe is used; a missing one is trained first. `distill` uses the
    store.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        epochs: passes of the teacher over its images; None for the recipe's, as below.
        batch_size: images of a step.
        lr: learning rate after warm-up.
        seed: of all random draws.
        overrides: keys of the recipe with other values, such as `{"student.views": 4}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same teacher.
        engine: who reads the images and fills the stores: this process, or the workers of a Ray
            cluster.

    Returns:
        The store; `path` is its folder.

    Raises:
        RecipeError: the recipe is wrong or has no student.views.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device are missing; or Ray, or a node of its cluster does
            not see a file.
        ResourceError: memory or disk ran out.
    """
    loaded = load_for(
        "teacher", recipe, overrides, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
    )
    with _ready(loaded, root, device, engine) as workspace:
        from kdedge.training.distill import store_features

        return store_features(loaded, workspace, resume=resume)


def distill(
    recipe: AnyRecipe,
    *,
    size: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
    keep_teacher: bool = False,
) -> Run:
    """Distills the student of a recipe on unlabeled images; trains its teacher first if needed.

    A finished teacher with the same settings and data is used again. Its run is the result's
    `teacher`.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        size: `nano`, `small` or `base`, a student in place of the recipe's.
        epochs: passes of the student over its images; None for the recipe's, as below.
        batch_size: images of a step.
        lr: learning rate after warm-up.
        seed: of all random draws.
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs.
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
    """
    loaded = load_for(
        "student",
        recipe,
        overrides,
        size=size,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    with _ready(loaded, root, device) as workspace:
        from kdedge.setup.method import trained_roles, warn_of_unused_optim
        from kdedge.training.distill import distill as distill_student

        warn_of_unused_optim(loaded, *trained_roles(loaded))
        _, student = distill_student(loaded, workspace, resume=resume, keep_teacher=keep_teacher)
        return Run(student)


def train(
    recipe: AnyRecipe,
    method: str | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    resume: bool = False,
) -> Run:
    """Trains a baseline: a method on the student's backbone, without a teacher.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        method: its name, such as `coop`; None for the recipe's `baseline.method`.
        epochs: passes of the baseline over its images; None for the recipe's, as below.
        batch_size: images of a step.
        lr: learning rate after warm-up.
        seed: of all random draws.
        overrides: keys of the recipe with other values, such as `{"baseline.settings.n_ctx": 16}`.
        root: folder of all runs.
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
    loaded = load_for(
        "baseline", recipe, overrides, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
    )
    with _ready(loaded, root, device) as workspace:
        from kdedge.setup.method import warn_of_unused_optim
        from kdedge.training.baseline import train_baseline, with_baseline

        warn_of_unused_optim(with_baseline(loaded, method), "baseline")
        return Run(train_baseline(loaded, workspace, method, resume=resume))


@contextmanager
def _ready(
    loaded: LoadedRecipe, root: str | Path, device: str | None, engine: EngineName = "local"
) -> Iterator[Workspace]:
    """Context with the workspace of a call that trains, joined with torchrun's other processes."""
    check_paths(loaded)
    need_training_packages("Training")
    from kdedge.distributed import joined
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace

    chosen = choose_device(device)
    with joined(chosen) as group:
        if group.world_size > 1 and engine != "local":
            raise RecipeError(
                f"torchrun has started {group.world_size} processes, and the engine {engine}"
                " starts its own.\n  Run the command without torchrun."
            )
        with open_workers(engine, device) as workers:
            yield Workspace(Path(root), chosen, group=group, workers=workers)


def check(
    recipe: AnyRecipe,
    *,
    size: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
) -> Preflight:
    """Checks a recipe before a run: classes, images, weights, memory, disk, time.

    It reads every image once, loads the weights and times a few steps. Nothing is written, except
    that open_clip downloads pretrained weights into its cache.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        size: `nano`, `small` or `base`, a student in place of the recipe's, as for `distill`.
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The findings, line by line, and the estimated training time in seconds.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        ResourceError: memory or disk would run out.
    """
    loaded = load_for("student", recipe, overrides, size=size)
    check_paths(loaded)
    need_training_packages("The check of weights and steps")
    from kdedge.setup.device import choose_device
    from kdedge.setup.method import trained_roles, warn_of_unused_optim
    from kdedge.setup.workspace import Workspace
    from kdedge.training import preflight

    warn_of_unused_optim(loaded, *trained_roles(loaded))
    return preflight.check(loaded, Workspace(Path(root), choose_device(device), is_read_only=True))


TEACHER, TRANSDUCTIVE = "teacher", "transductive"
"""In place of a method: the recipe's teacher labels each image, or all images together."""


def pseudo_label(
    recipe: AnyRecipe,
    output: str | Path,
    *,
    per_class: int | None = None,
    method: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    engine: EngineName = "local",
) -> LabeledPool:
    """Labels unlabeled images of a recipe with its teacher, or a model on the student's backbone.

    Each class gets the images with the highest probability of it. An image that several classes
    claim goes to the most probable one. Each line of the file has an image, its class and the
    model's confidence. Train on the file with the key `data.pseudo_labels`.

    The method `transductive` labels all images together, from the features and probabilities of the
    recipe's teacher (TransCLIP, arXiv:2406.01837), as distillation does under `student.targets`.
    It also writes class probabilities, to a second file with the ending `.safetensors`.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        output: the file to write, as JSON lines; it must not exist.
        per_class: images of each class; None for every image, with `transductive` only.
        method: `zeroshot`, `transductive`, `teacher` (the recipe's), or a method; teachers and
            methods are trained first unless a finished run exists. None for the teacher if the
            recipe has labeled images and a student, else `zeroshot`.
        overrides: keys of the recipe with other values.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        engine: who reads and labels the images: this process, or the workers of a Ray cluster.

    Returns:
        What was written, and the share of correct labels if known.

    Raises:
        RecipeError: the recipe is wrong, the file exists, or `per_class` is missing.
        DataError: there are too few unlabeled images.
        SetupError: torch, weights or the device is missing; or Ray, or a node of its cluster does
            not see a file.
    """
    overrides = overrides or {}
    if method is None:
        given = load_recipe(recipe, overrides).recipe
        is_taught = None not in (given.teacher, given.student, given.data.labeled)
        method = TEACHER if is_taught else "zeroshot"
    is_transductive = method == TRANSDUCTIVE
    if per_class is None and not is_transductive:
        raise RecipeError(
            f"{method} labels a number of images of each class, and per_class is missing.\n"
            "  Set per_class (--per-class), or use the method transductive to label every image."
        )
    loaded = _load_for(None if method in {TRANSDUCTIVE, TEACHER} else method, recipe, overrides)
    check_paths(loaded)
    need_training_packages("Labeling images")
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.label_pool import label_pool, label_transductively

    with open_workers(engine, device) as workers:
        workspace = Workspace(Path(root), choose_device(device), workers=workers)
        if per_class is None or is_transductive:
            return label_transductively(loaded, workspace, Path(output), per_class=per_class)
        return label_pool(loaded, workspace, method, Path(output), per_class=per_class)


def _load_for(method: str | None, recipe: AnyRecipe, overrides: Overrides) -> LoadedRecipe:
    """Loads the recipe, without its baseline section if that names another method than given."""
    loaded = load_recipe(recipe, overrides)
    baseline = loaded.recipe.baseline
    if method is None or baseline is None or baseline.method in {None, method}:
        return loaded
    return load_recipe(recipe, {"baseline": {}, **overrides})
