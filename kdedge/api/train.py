"""Checks a recipe; trains a teacher, a student or a baseline; labels images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdedge.api.evaluate import AnyRun, run_argument
from kdedge.api.run import Run
from kdedge.config.load import (
    AnyRecipe,
    LoadedRecipe,
    Overrides,
    check_paths,
    load_recipe,
    merged,
)
from kdedge.config.student_sizes import student_size
from kdedge.errors import RecipeError, check_at_least
from kdedge.plugins import need_training_packages
from kdedge.runs.find import find_run
from kdedge.runs.folder import runs_folder
from kdedge.runtime.threads import torch_as_before
from kdedge.workers import EngineName, open_workers

if TYPE_CHECKING:
    from kdedge.records.evaluation import Role
    from kdedge.setup.workspace import Workspace
    from kdedge.training.label_pool import LabeledPool
    from kdedge.training.preflight import Preflight
    from kdedge.training.teacher_store.store import TeacherStore


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
    size_keys: dict[str, Any] = {}
    if size is not None:
        student = load_recipe(recipe).recipe.student
        size_keys = student_size(size).overrides("promptkd" if student is None else student.method)
    return load_recipe(recipe, merged(size_keys, overrides or {}, role_keys(role, options)))


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
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
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
    loaded = load_for(
        "teacher", recipe, overrides, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
    )
    with _training_workspace(loaded, root, device, warn_for=["teacher"]) as workspace:
        from kdedge.training import teach

        return Run(teach.teach(loaded, workspace, resume=resume))


@torch_as_before()
def fill_teacher_store(
    recipe: AnyRecipe,
    *,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    engine: EngineName = "local",
) -> TeacherStore:
    """Stores the teacher's features of `student.views` crops of each unlabeled image.

    A finished teacher of the recipe is used; a missing one is trained first. `distill` uses the
    store.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        overrides: keys of the recipe with other values, such as `{"student.views": 4}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        resume: continue an interrupted run of the same teacher.
        engine: processes that read the images and fill the store: `local` is this process, `ray`
            the workers of a Ray cluster.

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
    with _training_workspace(loaded, root, device, engine) as workspace:
        from kdedge.training.distill import store_features

        return store_features(loaded, workspace, resume=resume)


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
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
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
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    loaded = load_for("student", recipe, overrides, size=size, **options)
    with _training_workspace(loaded, root, device, warn_for=["teacher", "student"]) as workspace:
        from kdedge.training import distill

        _, run = distill.distill(loaded, workspace, resume=resume, keep_teacher=keep_teacher)
        return Run(run)


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
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        method: its name, such as `coop`; None for the recipe's `baseline.method`.
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
    loaded = load_for(
        "baseline", recipe, overrides, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
    )
    with _training_workspace(loaded, root, device) as workspace:
        from kdedge.setup.method import warn_of_unused_optim
        from kdedge.training import teach

        loaded = teach.with_baseline(loaded, method)
        warn_of_unused_optim(loaded, "baseline")
        return Run(teach.train_baseline(loaded, workspace, resume=resume))


@contextmanager
def _training_workspace(
    loaded: LoadedRecipe,
    root: str | Path | None,
    device: str | None,
    engine: EngineName = "local",
    *,
    warn_for: Sequence[Role] = (),
) -> Iterator[Workspace]:
    """Context with the workspace of a training call, joined to torchrun's other processes.

    Warns about each `--set optim.KEY` that has no effect on the roles of `warn_for`.
    """
    check_paths(loaded)
    need_training_packages("Training")
    from kdedge.distributed import joined
    from kdedge.setup.method import trained_roles, warn_of_unused_optim
    from kdedge.setup.workspace import Workspace, set_up_device

    chosen = set_up_device(device)
    with joined(chosen) as group:
        if group.world_size > 1 and engine != "local":
            raise RecipeError(
                f"torchrun has started {group.world_size} processes, and the engine {engine}"
                " starts its own.\n  Run the command without torchrun."
            )
        warn_of_unused_optim(loaded, *(role for role in trained_roles(loaded) if role in warn_for))
        with open_workers(engine, device) as workers:
            yield Workspace(runs_folder(root), chosen, group=group, workers=workers)


@torch_as_before()
def check(
    recipe: AnyRecipe,
    *,
    size: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
) -> Preflight:
    """Checks a recipe before a run: classes, images, weights, memory, disk, time.

    It reads every image once, loads the weights and times a few steps. Nothing is written, except
    that open_clip downloads pretrained weights into its cache.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        size: `nano`, `small` or `base`, a student in place of the recipe's, as for `distill`.
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
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
    from kdedge.setup.method import trained_roles, warn_of_unused_optim
    from kdedge.setup.workspace import Workspace, set_up_device
    from kdedge.training import preflight

    warn_of_unused_optim(loaded, *trained_roles(loaded))
    workspace = Workspace(runs_folder(root), set_up_device(device), is_read_only=True)
    return preflight.check(loaded, workspace)


@torch_as_before()
def pseudo_label(
    recipe: AnyRecipe,
    output: str | Path,
    *,
    per_class: int,
    method: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    engine: EngineName = "local",
) -> LabeledPool:
    """Labels unlabeled images of a recipe with its teacher, or a model on the student's backbone.

    Each class gets the images with the highest probability of it. An image that several classes
    claim goes to the most probable one. Each line of the file has an image, its class and the
    model's confidence. Train on the file with the key `data.pseudo_labels`.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        output: the file to write, as JSON lines; it must not exist.
        per_class: images of each class.
        method: `zeroshot`, `teacher` (the recipe's), or a method; teachers and methods are trained
            first unless a finished run exists. None for the teacher if the recipe has labeled
            images and a student, else `zeroshot`.
        overrides: keys of the recipe with other values.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        engine: processes that read and label the images: `local` is this process, `ray` the
            workers of a Ray cluster.

    Returns:
        The facts of the file, and the share of correct labels if it is known.

    Raises:
        RecipeError: the recipe is wrong, the file exists, or `per_class` is below 1.
        DataError: there are too few unlabeled images.
        SetupError: torch, weights or the device is missing; or Ray, or a node of its cluster does
            not see a file.
    """
    check_at_least(1, per_class=per_class)
    overrides = overrides or {}
    loaded = load_recipe(recipe, overrides)
    if method is None:
        given = loaded.recipe
        has_teacher = None not in (given.teacher, given.student, given.data.labeled)
        method = "teacher" if has_teacher else "zeroshot"
    baseline = loaded.recipe.baseline
    # The recipe's baseline settings may belong to another method
    if method != "teacher" and baseline is not None and baseline.method not in {None, method}:
        loaded = load_recipe(recipe, {"baseline": {}, **overrides})
    with _training_workspace(loaded, root, device, engine) as workspace:
        from kdedge.training.label_pool import label_pool

        return label_pool(loaded, workspace, method, Path(output), per_class=per_class)


@torch_as_before()
def import_checkpoint(
    file: str | Path,
    kind: Literal["promptsrc", "promptkd"],
    *,
    weights: str,
    classes: str | Path | Sequence[str] | None = None,
    teacher: AnyRun | None = None,
    backbone: str | None = None,
    config: str | Path | None = None,
    quick_gelu: bool | None = None,
    name: str | None = None,
    exact: bool = False,
    root: str | Path | None = None,
    device: str | None = None,
) -> Run:
    """Imports a checkpoint of the public PromptSRC or PromptKD code as a finished run.

    Code in the file is not executed. The log lists the entries that were not used.

    Args:
        file: the checkpoint.
        kind: `promptsrc` for a PromptSRC teacher, `promptkd` for a PromptKD student.
        weights: weights of its backbone: a pretrained tag or a file.
        classes: class names, or a file with one per line. promptsrc needs them: the checkpoint has
            no names.
        teacher: a `Run`, its folder or name. promptkd needs it: the checkpoint has no class
            vectors.
        backbone: an open_clip model name such as `ViT-L-14`.
        config: your own model config (JSON) instead of a name.
        quick_gelu: activation of the backbone, if its weights do not tell it.
        name: name of the run; by default the file's name and the kind.
        exact: use the checkpoint's own copy of the backbone, which differs by rounding (promptsrc
            only).
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The run.

    Raises:
        RecipeError: the kind is unknown, needs class names or a teacher, or does not use an
            argument.
        DataError: the file is no such checkpoint, or is of another backbone or teacher.
        SetupError: torch, weights or the device is missing.
    """
    kinds = {
        "promptsrc": ("classes", "class names", "Give them: --classes FILE."),
        "promptkd": ("teacher", "class vectors", "Name its teacher's run: --teacher RUN."),
    }
    if kind not in kinds:
        raise RecipeError(
            f"{kind!r} is not a kind of public checkpoint.\n"
            "  Choose promptsrc for a teacher or promptkd for a student."
        )
    needed, lacks, remedy = kinds[kind]
    given = {"teacher": teacher, "classes": classes, "exact": exact or None}
    if given.pop(needed) is None:
        raise RecipeError(f"{file} is a {kind} checkpoint, which has no {lacks}.\n  {remedy}")
    for flag, value in given.items():
        if value is not None and (kind, flag) != ("promptsrc", "exact"):
            raise RecipeError(f"--{flag} has no effect on a {kind} checkpoint.\n  Leave it out.")
    need_training_packages("Reading a checkpoint")
    from kdedge.clip.resolve import BackboneSpec
    from kdedge.setup.classes import given_class_names
    from kdedge.setup.workspace import Workspace, set_up_device
    from kdedge.training.import_public import import_public

    file, root = Path(file), runs_folder(root)
    run = import_public(
        file,
        Workspace(root, set_up_device(device)),
        name=name or f"{file.name.split('.')[0]}-{kind}",
        spec=BackboneSpec(backbone, weights, None if config is None else Path(config), quick_gelu),
        class_names=() if classes is None else given_class_names(classes),
        teacher=None if teacher is None else find_run(run_argument(teacher), root),
        is_exact=exact,
    )
    return Run(run)
