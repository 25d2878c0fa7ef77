"""Training without a teacher: a method on the images that it declares to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kdedge._files import sha256_json
from kdedge._processes import ALONE, Processes
from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import LabeledSpec, Recipe
from kdedge.data.class_texts import read_class_texts
from kdedge.data.few_shot import Draws
from kdedge.errors import DataError
from kdedge.methods._protocol import LearnsFromTexts
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
from kdedge.training.pseudo_labels import labels_of_file, load_pool, with_pseudo_labeled
from kdedge.training.rounds import trial_round
from kdedge.training.runs import RunFolder
from kdedge.training.teachers import check_can_teach, made_by


def cache_folder(root: Path) -> Path:
    """Where features of frozen texts are kept, beside the runs."""
    return root / ".cache" / "text_features"


def few_shot_images(images: Images, spec: LabeledSpec, classes: Classes, draws: Draws) -> Images:
    """The images of a labeled source that are used: as many of each class as it says, or all."""
    if spec.shots is None:
        return images
    return images.only(
        draws.take(spec, images.source, images.indices, shots=spec.shots, class_names=classes.names)
    )


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
    """Makes ready to train a method on the images that it declares to learn from, if any.

    Raises:
        DataError: a method that gives them pseudo-labels has too few images.
    """
    recipe = loaded.recipe
    classes = load_classes(recipe)
    draws = labeled_draws(recipe)
    data = _training_data(loaded, role, choice, classes, draws, processes)
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
        test=images_to_measure(loaded, role, classes, processes),
        validation=validation_images(loaded, role, classes, draws, processes),
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
    sources: dict[str, str] = field(default_factory=dict)


def _training_data(
    loaded: LoadedRecipe,
    role: Role,
    choice: MethodChoice,
    classes: Classes,
    draws: Draws,
    processes: Processes,
) -> _TrainingData:
    """The images that a method declares to learn from."""
    recipe, sees, has_rounds = loaded.recipe, choice.module.SEES, choice.settings.n_rounds > 0
    pool = None
    if sees.unlabeled_images and (has_rounds or not sees.labels):
        pool = load_pool(recipe, classes, why=f"{choice.name} learns from unlabeled images")
    if not sees.labels:
        return _TrainingData(pool=pool) if has_rounds else _TrainingData(images=pool)
    data = _labeled_data(loaded, role, choice, classes, draws, processes)
    if pool is None or data.images is None:
        return data
    return replace(data, pool=pool.without(data.images))


def _labeled_data(
    loaded: LoadedRecipe,
    role: Role,
    choice: MethodChoice,
    classes: Classes,
    draws: Draws,
    processes: Processes,
) -> _TrainingData:
    """Labeled images, and what the recipe's pseudo-labels add to them."""
    data = loaded.recipe.data
    trained = classes.trained_by(choice.module.SEES)
    label_of = {label: position for position, label in enumerate(trained)}
    images, labels = None, {}
    if data.labeled is not None or data.pseudo_labels is None:
        images = labeled_images(loaded, role, classes, draws, processes)
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


def labeled_draws(recipe: Recipe) -> Draws:
    """What draws the labeled images, and those of validation after them."""
    spec = recipe.data.labeled
    shots = None if spec is None else spec.shots
    return Draws(spec, shots=shots, seed=recipe.seed, data=recipe.data)


def labeled_images(
    loaded: LoadedRecipe, role: Role, classes: Classes, draws: Draws, processes: Processes
) -> Images:
    """The images a teacher or a baseline is trained on: drawn over all classes, then the labeled.

    The order of the two steps is the benchmark's: the base classes' images do not depend on the
    split.
    """
    recipe = loaded.recipe
    images = require_images(
        load_images(recipe, "labeled", classes, processes=processes),
        "labeled",
        f"a {role} learns from labeled images",
    )
    spec = recipe.data.labeled
    assert spec is not None  # require_images has seen to it
    return few_shot_images(images, spec, classes, draws).of_classes(classes.labeled)


def images_to_measure(
    loaded: LoadedRecipe, role: Role, classes: Classes, processes: Processes
) -> Images | None:
    """The images that accuracy is measured on, if there are any.

    Raises:
        RecipeError: they are to choose an epoch, and there are none.
        DataError: they are to choose one, and none is of a labeled class.
    """
    images = load_images(loaded.recipe, "test", classes, processes=processes)
    if choose_method(loaded, role).optim.selection == "test":
        _check_chooses(require_images(images, "test", _chooses("test")), "test", classes)
    return images


def validation_images(
    loaded: LoadedRecipe, role: Role, classes: Classes, draws: Draws, processes: Processes
) -> Images | None:
    """Labeled images that an epoch is chosen by, where the recipe chooses one by them.

    They are drawn behind the labeled images, also for a model that does not learn from these: all
    models of a recipe are chosen by the same ones, whichever was trained before.

    Raises:
        RecipeError: there are none.
        DataError: none is of a labeled class.
    """
    if choose_method(loaded, role).optim.selection != "validation":
        return None
    recipe = loaded.recipe
    images = require_images(
        load_images(recipe, "validation", classes, processes=processes),
        "validation",
        _chooses("validation"),
    )
    spec, labeled = recipe.data.validation, recipe.data.labeled
    assert spec is not None  # require_images has seen to it
    is_first = spec.shots is not None and not draws.has_begun
    if is_first and labeled is not None and labeled.shots is not None:
        before = load_images(recipe, "labeled", classes, processes=processes)
        assert before is not None  # as it is named
        few_shot_images(before, labeled, classes, draws)
    chosen = few_shot_images(images, spec, classes, draws)
    _check_chooses(chosen, "validation", classes)
    return chosen


def _chooses(key: str) -> str:
    return f"selection: {key} chooses an epoch by it"


def _check_chooses(images: Images, key: str, classes: Classes) -> None:
    """Sees to it that an epoch can be chosen by images before any is trained.

    Raises:
        DataError: none is of a labeled class.
    """
    if not images.of_classes(classes.labeled).indices:
        raise DataError(
            f"data.{key} has no image of a base class, and labels of novel classes choose"
            " nothing.\n  Add images of the first half of the classes."
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
