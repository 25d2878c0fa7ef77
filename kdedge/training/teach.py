"""Training from labels: a prompt method on few labeled images of the labeled classes."""

from __future__ import annotations

from pathlib import Path

import torch

from kdedge._processes import ALONE, Processes
from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import LabeledSpec
from kdedge.data.split import few_shot
from kdedge.training.fit import run_job
from kdedge.training.job import Job
from kdedge.training.parts import (
    Classes,
    Images,
    MethodChoice,
    Role,
    build_method,
    choose_method,
    load_classes,
    load_images,
    load_role_backbone,
    require_images,
    settings_record,
)
from kdedge.training.runs import RunFolder
from kdedge.training.teachers import check_can_teach, made_by


def cache_folder(root: Path) -> Path:
    """Where features of frozen texts are kept, beside the runs."""
    return root / ".cache" / "text_features"


def few_shot_images(images: Images, spec: LabeledSpec, classes: Classes, *, seed: int) -> Images:
    """The labeled images that are trained on: drawn over all classes, then the labeled ones.

    The order of the two steps is the benchmark's: the base classes' images do not depend on the
    split.
    """
    indices = images.indices
    if spec.shots is not None:
        labels = [item.label for item in images.source.items]
        indices = tuple(few_shot(labels, indices, shots=spec.shots, seed=seed))
    return images.only(indices).of_classes(classes.labeled)


def teacher_job(
    loaded: LoadedRecipe,
    *,
    cache: Path | None,
    device: torch.device,
    processes: Processes = ALONE,
) -> Job:
    """Makes ready to train the recipe's teacher.

    Raises:
        RecipeError: its method cannot teach.
    """
    choice = choose_method(loaded, "teacher")
    check_can_teach(choice)
    return labeled_job(loaded, "teacher", choice, cache=cache, device=device, processes=processes)


def labeled_job(
    loaded: LoadedRecipe,
    role: Role,
    choice: MethodChoice,
    *,
    cache: Path | None,
    device: torch.device,
    processes: Processes,
) -> Job:
    """Makes ready to train a method that learns from labeled images, or from none."""
    recipe = loaded.recipe
    classes = load_classes(recipe)
    images, labels = None, None
    if choice.module.Method.needs_labels:
        images = labeled_images(loaded, role, classes, processes)
        train_label = {label: position for position, label in enumerate(classes.labeled)}
        labels = {index: train_label[label] for index, label in images.labels().items()}
    backbone = load_role_backbone(recipe, role, device=device, cache=cache)
    method = build_method(choice, backbone, classes, seed=recipe.seed)
    return Job(
        role=role,
        loaded=loaded,
        choice=choice,
        classes=classes,
        backbone=backbone,
        method=method,
        images=images,
        labels=labels,
        test=load_images(recipe, "test", classes, processes=processes),
        validation=validation_images(loaded, role, classes, processes),
        made_by=lambda: made_by(backbone, method.module, classes, settings_record(choice)),
    )


def labeled_images(
    loaded: LoadedRecipe, role: Role, classes: Classes, processes: Processes
) -> Images:
    """The images a teacher or a baseline is trained on."""
    recipe = loaded.recipe
    images = require_images(
        load_images(recipe, "labeled", classes, processes=processes),
        "labeled",
        f"a {role} learns from labeled images",
    )
    spec = recipe.data.labeled
    assert spec is not None  # require_images has seen to it
    return few_shot_images(images, spec, classes, seed=recipe.seed)


def validation_images(
    loaded: LoadedRecipe, role: Role, classes: Classes, processes: Processes
) -> Images | None:
    """Labeled images that an epoch is chosen by, where the recipe chooses one."""
    choice = choose_method(loaded, role)
    if choice.optim.selection == "last":
        return None
    return require_images(
        load_images(loaded.recipe, "validation", classes, processes=processes),
        "validation",
        "selection: validation chooses an epoch by it",
    )


def teach(
    loaded: LoadedRecipe,
    *,
    root: Path,
    device: torch.device,
    resume: bool = False,
    processes: Processes = ALONE,
) -> RunFolder:
    """Trains the recipe's teacher and stores its class vectors.

    Args:
        loaded: the recipe.
        root: folder of all runs.
        device: where to train.
        resume: go on with an interrupted run of the same teacher.
        processes: those that train together.
    """
    job = teacher_job(loaded, cache=cache_folder(root), device=device, processes=processes)
    return run_job(job, root=root, resume=resume, processes=processes)
