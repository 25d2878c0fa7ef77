"""The jobs of a teacher and of a baseline, on the kinds of images that their methods declare."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from kdedge.config.load import LoadedRecipe
from kdedge.config.optim_spec import resolve_optim
from kdedge.config.recipe import BaselineSpec
from kdedge.config.yaml_file import LineMap
from kdedge.data.classes import read_class_texts
from kdedge.data.pseudo_labels import read_pseudo_labels
from kdedge.errors import DataError, RecipeError
from kdedge.files import sha256_json
from kdedge.messages import option, some_of
from kdedge.methods.registry import load_method
from kdedge.setup.method import check_can_be_teacher, check_reads_pseudo_labels
from kdedge.setup.role import RoleSetup, check_sizes, set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.training.job import Job, with_measured_images

log = logging.getLogger(__name__)


def teacher_job(loaded: LoadedRecipe, workspace: Workspace) -> Job:
    """The job that trains the recipe's teacher.

    Raises:
        RecipeError: its method cannot be a teacher.
    """
    return _job_on_training_images(teacher_setup(loaded, workspace))


def teacher_setup(loaded: LoadedRecipe, workspace: Workspace) -> RoleSetup:
    """Setup of the recipe's teacher, without reading images.

    Raises:
        RecipeError: its method cannot be a teacher.
    """
    setup = set_up_role(loaded, "teacher", workspace)
    check_can_be_teacher(setup)
    return setup


def with_baseline(loaded: LoadedRecipe, method: str | None = None) -> LoadedRecipe:
    """Fills in the recipe's baseline section, so that the recipe alone reproduces the run.

    If a teacher uses the same method, the baseline takes that teacher's settings and `optim`.
    Otherwise it takes the method's default settings and the recipe's shared `optim`, in which the
    method's own `optim` values take precedence. The recipe's baseline section overrides both; if
    its file names another method there, only overrides of the section count.

    Args:
        loaded: the recipe; its baseline section may be incomplete.
        method: the baseline's method; None for the recipe's `baseline.method`.

    Raises:
        RecipeError: no method is named, an override names another one, the method does not exist,
            or it learns from a teacher.
    """
    recipe = loaded.recipe
    lines = loaded.lines
    key = ("baseline", "method")
    section = recipe.baseline or BaselineSpec()
    if method is not None and section.method not in (None, method):
        which = f"{lines.where(key)}: baseline.method is {section.method}"
        if lines.override(key):
            raise RecipeError(f"{which}, but {method} was asked for.\n  Leave one of them out.")
        log.info(f"{which}: {method} does not use that section.")
        given = section.model_dump(exclude_unset=True)
        section = BaselineSpec(**_overridden(given, lines, "baseline"))
    name = method or section.method
    if name is None:
        raise RecipeError(
            f"The recipe {recipe.name} has no baseline.\n"
            f"  Choose {option('--method')} or baseline.method; `kdedge methods` lists the methods."
        )
    module = load_method(name)
    if module.METHOD.needs_teacher:
        raise RecipeError(
            f"{name} learns from a teacher, but a baseline has no teacher.\n"
            f"  Set student.method: {name} and run `kdedge distill`."
        )
    settings = {}
    optim = module.METHOD.optim
    teacher = recipe.teacher
    if teacher is not None and teacher.is_trained and teacher.method == name:
        settings = teacher.settings
        optim = teacher.optim
    spec = BaselineSpec(
        method=name,
        settings={**settings, **section.settings},
        optim=resolve_optim(recipe.optim, optim, section.optim),
    )
    return replace(loaded, recipe=recipe.model_copy(update={"baseline": spec}))


def _overridden(values: dict[str, Any], lines: LineMap, *path: str) -> dict[str, Any]:
    """The values of a recipe's section, or what is in them, that overrides gave."""
    kept = {}
    for key, value in values.items():
        if lines.override((*path, key)):
            kept[key] = value
        elif isinstance(value, dict) and (part := _overridden(value, lines, *path, key)):
            kept[key] = part
    return kept


def baseline_job(loaded: LoadedRecipe, workspace: Workspace) -> Job:
    """The job that trains the recipe's baseline; see `with_baseline`."""
    return _job_on_training_images(set_up_role(with_baseline(loaded), "baseline", workspace))


def _job_on_training_images(setup: RoleSetup) -> Job:
    """The job that trains a method on the kinds of images that it declares.

    Raises:
        RecipeError: a setting does not fit the backbone, or the method would not use the recipe's
            pseudo-labels.
        DataError: the method's own training finds too few images.
    """
    check_sizes((setup.loaded, setup.role, setup.backbone.sizes))
    check_reads_pseudo_labels(setup, setup.recipe)
    job = with_measured_images(_with_sentences(_with_training_images(Job(setup))))
    own_training = setup.settings.own_training
    return job if own_training is None else own_training.prepare(job)


def _with_training_images(job: Job) -> Job:
    """The job with training images of the kinds that its method declares."""
    setup = job.setup
    needs = job.setup.data_needs
    if needs.unlabeled_images:
        what = f"{setup.method_name} learns from unlabeled images"
        job = replace(job, unlabeled=setup.images.require("unlabeled", what))
    return with_labels(job) if needs.labels else job


def _with_sentences(job: Job) -> Job:
    """The job with the recipe's sentences about classes, if its method learns from them."""
    setup = job.setup
    file = job.setup.recipe.classes.texts
    if file is None or not setup.module.METHOD.learns_from_texts:
        return job
    sentences = read_class_texts(file, setup.classes.names)
    hashes = {**job.data_hashes, "class_texts": sha256_json(sentences)}
    return replace(job, sentences=sentences, data_hashes=hashes)


def with_labels(job: Job) -> Job:
    """The job with labeled images, and the images with pseudo-labels of the recipe's file.

    Raises:
        DataError: labeled images are of fewer than two classes, or a method in closed form lacks
            labels of a class.
    """
    setup = job.setup
    spec = setup.recipe.data
    label_of = {label: position for position, label in enumerate(setup.train_classes)}
    labeled = None
    if spec.labeled is not None or spec.pseudo_labels is None:
        labeled = setup.images.drawn_labeled(setup.role)
        labels = {index: label_of[label] for index, label in labeled.class_labels().items()}
        n_present = len(set(labels.values()))
        n_classes = len(setup.classes.labeled)
        if n_present < min(2, n_classes):
            which = "" if spec.split == "all" else "base "
            raise DataError(
                f"data.labeled has images of {n_present} of the {n_classes} {which}classes, and a"
                f" {setup.role} needs two or more.\n  Add images of other classes."
            )
        labeled = replace(labeled, train_labels=labels)
    hashes = dict(job.data_hashes)
    if spec.pseudo_labels is not None:
        pool = setup.images.require("unlabeled", "data.pseudo_labels is of its images")
        labels = read_pseudo_labels(spec.pseudo_labels, pool, class_names=setup.classes.names)
        pseudo = pool.labeled_as(labels)
        if labeled is not None:
            pseudo = pseudo.without(labeled)
        assert pseudo.train_labels is not None
        hashes["pseudo_labels"] = sha256_json(sorted(pseudo.train_labels.items()))
        labeled = pseudo if labeled is None else labeled.joined_with(pseudo)
    job = replace(job, labeled=labeled, data_hashes=hashes)
    present = sorted(set(job.labels.values()))
    absent = set(label_of.values()) - set(present)
    if setup.is_closed_form and absent:
        names = [setup.classes.names[setup.train_classes[label]] for label in sorted(absent)]
        remedies = {
            "teacher": "set teacher.method: promptsrc",
            "student": "leave student.settings.labeled_weight out",
            "baseline": "choose another method",
        }
        raise DataError(
            f"{setup.method_name} needs labels of every class that it learns from labels, and"
            f" {len(names)} of {len(label_of)} have none: {', '.join(some_of(names))}.\n  Label"
            f" images of each class, take these out of the class list, or {remedies[setup.role]}."
        )
    settings = setup.settings
    needs = setup.data_needs
    if absent and (settings.learns_from_labels or not needs.novel_class_names):
        # In the softmax, a class without labels would be the wrong answer for every image
        assert labeled is not None
        train_classes = [setup.train_classes[label] for label in present]
        labels = {index: present.index(label) for index, label in job.labels.items()}
        job = replace(
            job,
            labeled=replace(labeled, train_labels=labels),
            train_classes=train_classes,
            data_hashes={**hashes, "train_classes": sha256_json(train_classes)},
        )
    return job
