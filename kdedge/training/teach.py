"""Trains a method without a teacher, on the kinds of images that it declares.

Cheap baselines on a teacher's labeled images detect a teacher that did not learn: zero-shot CLIP,
zero-shot CLIP with balanced classes, and a ridge regression by leave-one-out (`methods/ridge.py`).
They take seconds. A trained teacher did not learn if its accuracy on its own training images, as a
mean over classes, is lower than the accuracy of a baseline.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from kdedge.config.load import LoadedRecipe
from kdedge.config.optim_spec import OptimSpec, resolve_optim
from kdedge.config.recipe import BaselineSpec
from kdedge.data.balance import find_offsets
from kdedge.data.classes import read_class_texts
from kdedge.data.pseudo_labels import read_pseudo_labels
from kdedge.errors import DataError, RecipeError, some_of
from kdedge.evaluation.accuracy import accuracy_result
from kdedge.files import sha256_json, write_json
from kdedge.methods.registry import load_method
from kdedge.records.record import read_record
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import compute_logits
from kdedge.runs.model import MethodModel
from kdedge.setup.data import RecipeData
from kdedge.setup.method import check_can_teach, check_reads_pseudo_labels
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.sizes import check_sizes
from kdedge.setup.workspace import Workspace
from kdedge.training.closed_form import ridge_on_labels
from kdedge.training.job import Job, TrainingData, make_job, zero_shot_model
from kdedge.training.rounds import trial_labels
from kdedge.training.run_job import run_job

log = logging.getLogger(__name__)

_BASELINES = "baselines.json"  # file of a teacher's run


def teach(loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False) -> RunFolder:
    """Trains the recipe's teacher, and stores its class vectors.

    Args:
        loaded: the recipe.
        workspace: the command's workspace.
        resume: continue an interrupted run of the same teacher.
    """
    return train_teacher(teacher_job(loaded, workspace), resume=resume)


def train_teacher(job: Job, *, resume: bool) -> RunFolder:
    """Trains a teacher, and stores its class vectors and its baselines' accuracies."""
    group = job.setup.workspace.group
    baselines = group.on_rank0(lambda: baseline_accuracies(job))
    run = run_job(job, resume=resume)
    group.on_rank0(lambda: save_baselines(run, baselines))
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


def with_baseline(loaded: LoadedRecipe, method: str | None = None) -> LoadedRecipe:
    """Fills in the recipe's baseline section, so that the recipe alone reproduces the run.

    If a teacher uses the same method, the baseline takes that teacher's settings and `optim`.
    Otherwise it takes the method's default settings and the recipe's shared `optim`, in which the
    method's own `optim` values take precedence. The recipe's baseline section overrides both.

    Args:
        loaded: the recipe; its baseline section may be incomplete.
        method: the baseline's method; None for the recipe's `baseline.method`.

    Raises:
        RecipeError: no method is named, two different methods are named, the method does not
            exist, or it learns from a teacher.
    """
    recipe = loaded.recipe
    section = recipe.baseline or BaselineSpec()
    if None not in (method, section.method) and method != section.method:
        raise RecipeError(
            f"{loaded.lines.where(('baseline', 'method'))}: baseline.method is {section.method},"
            f" but --method is {method}.\n"
            "  Leave --method out, or replace the section with --set"
            f" 'baseline={{method: {method}}}'"
        )
    name = method or section.method
    if name is None:
        raise RecipeError(
            f"The recipe {recipe.name} has no baseline.\n"
            "  Choose its method with --method or baseline.method; `kdedge methods` lists them."
        )
    module = load_method(name)
    if module.METHOD.needs_teacher:
        raise RecipeError(
            f"{name} learns from a teacher, but a baseline has no teacher.\n"
            f"  Set student.method: {name} and run `kdedge distill`."
        )
    settings, optim = {}, module.METHOD.optim
    teacher = recipe.teacher
    if teacher is not None and teacher.is_trained and teacher.method == name:
        settings, optim = teacher.settings, teacher.optim
    spec = BaselineSpec(
        method=name,
        settings={**settings, **section.settings},
        optim=OptimSpec(**resolve_optim(recipe.optim, optim, section.optim).model_dump()),
    )
    return replace(loaded, recipe=recipe.model_copy(update={"baseline": spec}))


def baseline_job(loaded: LoadedRecipe, workspace: Workspace) -> Job:
    """The job that trains the recipe's baseline; see `with_baseline`."""
    return job_on_training_images(set_up_role(with_baseline(loaded), "baseline", workspace))


def train_baseline(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False
) -> RunFolder:
    """Trains the recipe's baseline and evaluates it.

    Args:
        loaded: the recipe.
        workspace: the command's workspace.
        resume: continue an interrupted run of the same baseline.
    """
    return run_job(baseline_job(loaded, workspace), resume=resume)


def job_on_training_images(setup: RoleSetup) -> Job:
    """The job that trains a method on the kinds of images that it declares.

    Raises:
        RecipeError: a setting does not fit the backbone, or the method would not use the recipe's
            pseudo-labels.
        DataError: the method pseudo-labels its images, and there are too few.
    """
    check_sizes((setup.loaded, setup.role, setup.backbone.sizes))
    check_reads_pseudo_labels(setup.choice, setup.loaded.recipe)
    images = RecipeData(setup.loaded.recipe, setup.classes, setup.workspace)
    data = _training_data(setup, images)
    file = setup.loaded.recipe.classes.texts
    if file is not None and setup.choice.module.METHOD.learns_from_texts:
        sentences = read_class_texts(file, setup.classes.names)
        hashes = {**data.hashes, "class_texts": sha256_json(sentences)}
        data = replace(data, sentences=sentences, hashes=hashes)
    job = make_job(setup, images, data)
    if data.pool is not None:
        trial_labels(job)  # raises an error if the pool has too few images
    return job


def _training_data(setup: RoleSetup, images: RecipeData) -> TrainingData:
    """The training images, of the kinds that a method declares."""
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
    """The labeled images, and the images with pseudo-labels of the recipe's file."""
    spec = setup.loaded.recipe.data
    label_of = {label: position for position, label in enumerate(setup.train_classes)}
    labeled = None
    if spec.labeled is not None or spec.pseudo_labels is None:
        labeled = images.labeled(setup.role)
        labels = {index: label_of[label] for index, label in labeled.class_labels().items()}
        labeled = replace(labeled, train_labels=labels)
    if spec.pseudo_labels is None:
        data = TrainingData(labeled)
    else:
        pool = images.require("unlabeled", "data.pseudo_labels is of its images")
        labels = read_pseudo_labels(spec.pseudo_labels, pool, class_names=setup.classes.names)
        pseudo = pool.labeled_as(labels)
        if labeled is not None:
            pseudo = pseudo.without(labeled)
        assert pseudo.train_labels is not None
        hashes = {"pseudo_labels": sha256_json(sorted(pseudo.train_labels.items()))}
        data = TrainingData(labeled.joined_with(pseudo) if labeled else pseudo, hashes=hashes)
    absent = set(label_of.values()) - set((data.labels or {}).values())
    if setup.choice.is_solved and absent:
        names = [setup.classes.names[setup.train_classes[label]] for label in sorted(absent)]
        raise DataError(
            f"{setup.choice.name} knows classes by their labels alone, and {len(names)} of"
            f" {len(label_of)} have none: {', '.join(some_of(names, 5))}.\n  Label images of each"
            " class, take these out of the class list, or set teacher.method: promptsrc."
        )
    return data


def baseline_accuracies(job: Job) -> dict[str, float]:
    """Measures `zeroshot` and `ridge` on a teacher's labeled images, and logs their accuracies.

    Args:
        job: the teacher's job.

    Returns:
        Name of a method -> accuracy in percent, mean over classes. Empty if not every class has
        labels, or if the teacher itself is one of the two methods.
    """
    images = job.data.images
    if images is None or not images.has_labels_of(len(job.classes.names)):
        return {}
    if job.choice.name in ("ridge", "zeroshot"):
        return {}
    accuracies: dict[str, float] = {}
    parts = []
    if job.setup.backbone.has_texts:
        logits, truth = _labeled_logits(job, zero_shot_model(job))
        shares = torch.bincount(truth, minlength=logits.shape[1]).double() / len(truth)
        accuracies["zeroshot"] = _mean_over_classes(job, logits, truth)
        balanced = _mean_over_classes(job, logits - find_offsets(logits, shares), truth)
        parts.append(f"zero-shot CLIP {accuracies['zeroshot']:.1f} %, in balance {balanced:.1f} %")
    _, percent = ridge_on_labels(job.setup, job.training_images)
    if percent is not None:
        accuracies["ridge"] = percent
        parts.append(f"ridge {percent:.1f} %, each image left out once")
    if not parts:
        return {}
    n_images = len(job.training_images.indices)
    log.info(f"On {n_images} labeled images, mean over classes: {', '.join(parts)}.")
    return accuracies


def save_baselines(run: RunFolder, accuracies: dict[str, float]) -> None:
    """Writes the result of `baseline_accuracies` to the teacher's run."""
    if accuracies:
        write_json(run.path / _BASELINES, accuracies)


def compare_with_baselines(run: RunFolder, job: Job, model: MethodModel) -> dict[str, float]:
    """The result of `baseline_accuracies` and the trained teacher's own accuracy, as `trained`.

    Args:
        run: the teacher's run, which stores the result for later students.
        job: the teacher's job.
        model: the trained teacher.
    """
    file = run.path / _BASELINES
    accuracies = read_record(dict[str, float], file) if file.exists() else baseline_accuracies(job)
    if accuracies and "trained" not in accuracies:
        accuracies["trained"] = _mean_over_classes(job, *_labeled_logits(job, model))
        save_baselines(run, accuracies)
    return accuracies


def _labeled_logits(job: Job, model: MethodModel) -> tuple[Tensor, Tensor]:
    """Logits [n, C] of the labeled images, and their classes [n]."""
    labels = job.training_images.train_labels
    assert labels is not None  # the teacher learns from labels
    logits = compute_logits(model, job.training_images, what="looking at the labeled images")
    return logits, torch.tensor([labels[i] for i in job.training_images.indices])


def _mean_over_classes(job: Job, logits: Tensor, labels: Tensor) -> float:
    """Accuracy of logits in percent, mean over classes."""
    names = job.classes.names
    return accuracy_result(logits, labels, class_names=names, split="all").mean_over_classes
