"""Training without a teacher: a method on the images that it declares to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kdedge._files import sha256_json
from kdedge.config.load import LoadedRecipe
from kdedge.data.class_texts import read_class_texts
from kdedge.data.few_shot import Draws
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.methods.protocol import LearnsFromTexts
from kdedge.runs.folder import RunFolder
from kdedge.runs.weights import made_by
from kdedge.setup.backbone import cache_folder, load_role_backbone
from kdedge.setup.classes import Classes, load_classes
from kdedge.setup.images import Images
from kdedge.setup.labeled import (
    images_to_measure,
    labeled_draws,
    labeled_images,
    validation_images,
)
from kdedge.setup.method import (
    MethodChoice,
    Role,
    build_method,
    check_can_teach,
    choose_method,
    settings_record,
)
from kdedge.training.job.job import Job, LabeledImages
from kdedge.training.job.run_job import run_job
from kdedge.training.pseudo_labels.labels import labels_of_file, load_pool, with_pseudo_labeled
from kdedge.training.pseudo_labels.rounds import trial_round


def teacher_job(
    loaded: LoadedRecipe,
    *,
    cache: Path | None,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Job:
    """Makes ready to train the recipe's teacher.

    Raises:
        RecipeError: its method cannot teach.
    """
    choice = choose_method(loaded, "teacher")
    check_can_teach(choice)
    return labeled_job(loaded, "teacher", choice, cache=cache, device=device, group=group)


def labeled_job(
    loaded: LoadedRecipe,
    role: Role,
    choice: MethodChoice,
    *,
    cache: Path | None,
    device: torch.device,
    group: ProcessGroup,
) -> Job:
    """Makes ready to train a method on the images that it declares to learn from, if any.

    Raises:
        DataError: a method that gives them pseudo-labels has too few images.
    """
    recipe = loaded.recipe
    classes = load_classes(recipe)
    draws = labeled_draws(recipe)
    data = _training_data(loaded, role, choice, classes, draws, group)
    backbone = load_role_backbone(recipe, role, device=device, cache=cache)
    method = build_method(choice, backbone, classes, seed=recipe.seed)
    sources = dict(data.sources)
    if recipe.classes.texts is not None and isinstance(method, LearnsFromTexts):
        sentences = read_class_texts(recipe.classes.texts, classes.names)
        method.use_texts(sentences)
        sources["class_texts"] = sha256_json(sentences)
    job = Job(
        role=role,
        loaded=loaded,
        choice=choice,
        classes=classes,
        backbone=backbone,
        method=method,
        images=data.images,
        labels=data.labels,
        pool=data.pool,
        labeled=data.labeled,
        test=images_to_measure(loaded, role, classes, group),
        validation=validation_images(loaded, role, classes, draws, group),
        made_by=lambda: made_by(backbone, method.module, classes, settings_record(choice)),
        sources=sources,
    )
    if job.pool is not None:
        trial_round(job)
    return job


@dataclass(frozen=True)
class _TrainingData:
    """What a method is trained on; see `Job`."""

    images: Images | None = None
    labels: dict[int, int] | None = None
    pool: Images | None = None
    labeled: LabeledImages | None = None
    sources: dict[str, str] = field(default_factory=dict)


def _training_data(
    loaded: LoadedRecipe,
    role: Role,
    choice: MethodChoice,
    classes: Classes,
    draws: Draws,
    group: ProcessGroup,
) -> _TrainingData:
    """The images that a method declares to learn from."""
    recipe, has_rounds = loaded.recipe, choice.settings.n_rounds > 0
    sees = choice.module.METHOD.sees
    pool = None
    if sees.unlabeled_images:
        pool = load_pool(recipe, classes, why=f"{choice.name} learns from unlabeled images")
    if not sees.labels:
        return _TrainingData(pool=pool) if has_rounds else _TrainingData(images=pool)
    data = _labeled_data(loaded, role, choice, classes, draws, group)
    if pool is None or data.images is None:
        return data
    if has_rounds:
        return replace(data, pool=pool.without(data.images))
    labeled = LabeledImages(data.images, data.labels or {})
    return replace(data, images=pool, labels=None, labeled=labeled)


def labeled_beside(
    loaded: LoadedRecipe, choice: MethodChoice, classes: Classes, group: ProcessGroup
) -> LabeledImages | None:
    """The labeled images beside a student's unlabeled ones, if its method learns from both."""
    if not choice.module.METHOD.sees.labels:
        return None
    draws = labeled_draws(loaded.recipe)
    data = _labeled_data(loaded, "student", choice, classes, draws, group)
    assert data.images is not None  # there is no other source of labels
    return LabeledImages(data.images, data.labels or {})


def _labeled_data(
    loaded: LoadedRecipe,
    role: Role,
    choice: MethodChoice,
    classes: Classes,
    draws: Draws,
    group: ProcessGroup,
) -> _TrainingData:
    """Labeled images, and what the recipe's pseudo-labels add to them."""
    data = loaded.recipe.data
    trained = classes.trained_by(choice.module.METHOD.sees)
    label_of = {label: position for position, label in enumerate(trained)}
    images, labels = None, {}
    if data.labeled is not None or data.pseudo_labels is None:
        images = labeled_images(loaded, role, classes, draws, group)
        labels = {index: label_of[label] for index, label in images.labels().items()}
    if data.pseudo_labels is None:
        return _TrainingData(images, labels)
    pseudo, given = labels_of_file(loaded.recipe, classes)
    if images is not None:
        pseudo = pseudo.without(images)
        given = {index: given[index] for index in pseudo.indices}
    images, labels, _ = with_pseudo_labeled(images, labels, pseudo, given)
    return _TrainingData(
        images, labels, sources={"pseudo_labels": sha256_json(sorted(given.items()))}
    )


def teach(
    loaded: LoadedRecipe,
    *,
    root: Path,
    device: torch.device,
    resume: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> RunFolder:
    """Trains the recipe's teacher and stores its class vectors.

    Args:
        loaded: the recipe.
        root: folder of all runs.
        device: where to train.
        resume: go on with an interrupted run of the same teacher.
        group: those that train together.
    """
    job = teacher_job(loaded, cache=cache_folder(root), device=device, group=group)
    return run_job(job, root=root, resume=resume, group=group)
