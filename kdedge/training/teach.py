"""Trains a method without a teacher, on the kinds of images that it declares."""

from __future__ import annotations

from dataclasses import replace

from kdedge.config.load import LoadedRecipe
from kdedge.data.classes import read_class_texts
from kdedge.files import sha256_json
from kdedge.runs.folder import RunFolder
from kdedge.setup.data import RecipeData
from kdedge.setup.method import check_can_teach, check_reads_pseudo_labels
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.sizes import check_sizes
from kdedge.setup.workspace import Workspace
from kdedge.training.job import Job, TrainingData, make_job
from kdedge.training.pseudo_labels import read_for, trial_labels
from kdedge.training.quick_look import baseline_accuracies, save_baselines
from kdedge.training.run_job import run_job


def teach(loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False) -> RunFolder:
    """Trains the recipe's teacher, and stores its class vectors.

    Args:
        loaded: the recipe.
        workspace: where the command works.
        resume: continue an interrupted run of the same teacher.
    """
    job = teacher_job(loaded, workspace)
    baselines = workspace.group.on_rank0(lambda: baseline_accuracies(job))
    run = run_job(job, resume=resume)
    workspace.group.on_rank0(lambda: save_baselines(run, baselines))
    return run


def teacher_job(loaded: LoadedRecipe, workspace: Workspace) -> Job:
    """The job that trains the recipe's teacher.

    Raises:
        RecipeError: its method cannot be a teacher.
    """
    return job_on_training_images(teacher_setup(loaded, workspace))


def teacher_setup(loaded: LoadedRecipe, workspace: Workspace) -> RoleSetup:
    """Setup of the recipe's teacher, without reading images.

    Raises:
        RecipeError: its method cannot be a teacher.
    """
    setup = set_up_role(loaded, "teacher", workspace)
    check_can_teach(setup.choice)
    return setup


def job_on_training_images(setup: RoleSetup) -> Job:
    """The job that trains a method on the kinds of images that it declares, if any.

    Raises:
        RecipeError: a setting does not fit the backbone, or the method would not use the recipe's
            pseudo-labels.
        DataError: a method that pseudo-labels its images has too few of them.
    """
    check_sizes(setup)
    check_reads_pseudo_labels(setup.choice, setup.loaded.recipe)
    images = RecipeData(setup.loaded.recipe, setup.classes, setup.workspace)
    data = _training_data(setup, images)  # before validation images: the order of draws matters
    job = make_job(setup, images, _with_sentences(setup, data))
    if data.pool is not None:
        trial_labels(job)  # raises an error if the pool has too few images
    return job


def _with_sentences(setup: RoleSetup, data: TrainingData) -> TrainingData:
    """Adds the recipe's sentences about the classes, if the method learns from them."""
    file = setup.loaded.recipe.classes.texts
    if file is None or not setup.choice.module.METHOD.learns_from_texts:
        return data
    sentences = read_class_texts(file, setup.classes.names)
    hashes = {**data.hashes, "class_texts": sha256_json(sentences)}
    return replace(data, sentences=sentences, hashes=hashes)


def _training_data(setup: RoleSetup, images: RecipeData) -> TrainingData:
    """The images of the kinds that a method declares."""
    needs, has_rounds = setup.choice.data_needs, setup.choice.settings.n_rounds > 0
    pool = None
    if needs.unlabeled_images:
        pool = images.require("unlabeled", f"{setup.choice.name} learns from unlabeled images")
    if not needs.labels:
        return TrainingData(pool=pool) if has_rounds else TrainingData(images=pool)
    data = labeled_data(setup, images)
    if pool is None or data.images is None:
        return data
    if has_rounds:
        return replace(data, pool=pool.without(data.images))
    return replace(data, images=pool, labeled=data.images)


def labeled_data(setup: RoleSetup, images: RecipeData) -> TrainingData:
    """Labeled images, with the images of the recipe's pseudo-labels."""
    spec = setup.loaded.recipe.data
    label_of = {label: position for position, label in enumerate(setup.train_classes)}
    labeled = None
    if spec.labeled is not None or spec.pseudo_labels is None:
        labeled = images.labeled(setup.role)
        labels = {index: label_of[label] for index, label in labeled.source_labels().items()}
        labeled = replace(labeled, labels=labels)
    if spec.pseudo_labels is None:
        return TrainingData(labeled)
    pool = images.require("unlabeled", "data.pseudo_labels is of its images")
    pseudo = pool.labeled_as(read_for(pool, spec.pseudo_labels, classes=setup.classes))
    if labeled is not None:
        pseudo = pseudo.without(labeled)
    assert pseudo.labels is not None
    hashes = {"pseudo_labels": sha256_json(sorted(pseudo.labels.items()))}
    return TrainingData(labeled.with_those_of(pseudo) if labeled else pseudo, hashes=hashes)
