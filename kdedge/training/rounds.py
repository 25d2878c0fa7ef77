"""Pseudo-labels of a recipe's unlabeled images, and rounds of training on them.

The model of one round labels the images of the next. `rounds/<NN>/` in the run's folder has a
round's pseudo-labels, checkpoints and metrics. The pseudo-labels are written before the round is
trained. A resumed run goes through all rounds again, and loads the weights of finished ones from
their last checkpoints. A method's file and `data.pseudo_labels` define how labels are chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdedge.config.recipe import Recipe
from kdedge.data.images import Images
from kdedge.data.open import open_source
from kdedge.data.pseudo_labels import (
    Probabilities,
    PseudoLabel,
    read_pseudo_labels,
    write_pseudo_labels,
)
from kdedge.errors import DataError, explaining_writes
from kdedge.files import sha256_json
from kdedge.messages import name_some
from kdedge.methods.base import RoundsSettings
from kdedge.runs.folder import RunFolder, TrainingFolder
from kdedge.runs.model import MethodModel
from kdedge.runs.provenance import RoundSummary, TrainingSummary
from kdedge.setup.classes import Classes
from kdedge.training.job import Job, zero_shot_model
from kdedge.training.loop.train import train

log = logging.getLogger(__name__)


def round_folder(run: RunFolder, number: int) -> TrainingFolder:
    """The folder of a run's round (from 1), which is created if missing."""
    folder = TrainingFolder(run.path / "rounds" / f"{number:02d}", run.role)
    with explaining_writes(folder.checkpoints):
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
    return folder


def train_rounds(
    job: Job, run: RunFolder, *, validate: Callable[[], float] | None
) -> dict[str, Any]:
    """Trains a method that pseudo-labels its pool; it ends with the weights of the last round.

    Returns:
        Entries of the run's summary: the result of the last training, with epochs, steps and
        seconds summed over all rounds, and a record of each round.
    """
    module = job.method.module
    first_values = {name: value.clone() for name, value in module.state_dict().items()}
    pool = job.training_images
    truth = true_labels(job.setup.recipe, job.setup.classes, pool)
    model: MethodModel = zero_shot_model(job)
    results: list[TrainingSummary] = []
    rounds: list[RoundSummary] = []
    for number in range(1, job.setup.settings.n_rounds + 1):
        folder = round_folder(run, number)
        if not folder.pseudo_labels.exists():
            _label(job, model, folder, number)
        labels = read_pseudo_labels(folder.pseudo_labels, pool, class_names=job.setup.classes.names)
        accuracy = accuracy_percent(labels, truth)
        correct = "" if accuracy is None else f", {accuracy:.2f} % of them correct"
        n_rounds = job.setup.settings.n_rounds
        log.info(f"Round {number} of {n_rounds}: {len(labels)} pseudo-labels{correct}.")
        module.load_state_dict(first_values)
        round_job = job_of_round(job, labels)
        result = train(
            job.method,
            round_job.batches,
            round_job.n_steps,
            settings=job.setup.optim,
            run=folder,
            validate=validate,
            device=job.setup.device,
        )
        results.append(result)
        rounds.append(
            RoundSummary(
                n_images=len(labels),
                n_classes=len(set(labels.values())),
                accuracy_percent=accuracy,
                seconds=result.seconds,
            )
        )
        model = job.model()
    sums = {name: sum(getattr(r, name) for r in results) for name in ("epochs", "steps", "seconds")}
    training = results[-1].model_copy(update=sums).model_dump()
    return {"training": training, "rounds": [record.model_dump() for record in rounds]}


def job_of_round(job: Job, labels: dict[int, int]) -> Job:
    """The job of one round, which trains on labeled and on pseudo-labeled images.

    Args:
        job: the job of a method that pseudo-labels its pool.
        labels: position in the pool's source -> class.
    """
    labeled, pseudo = job.labeled, job.training_images.labeled_as(labels)
    n_labeled = 0 if labeled is None else len(labeled.indices)
    n_items = 0 if labeled is None else len(labeled.source.items)
    settings = _settings(job)

    def weights(positions: Sequence[int]) -> Tensor:
        is_pseudo = torch.tensor([position >= n_items for position in positions])
        return settings.weigh(is_pseudo, n_labeled=n_labeled, n_pseudo=len(labels))

    images = pseudo if labeled is None else labeled.joined_with(pseudo)
    return replace(job, labeled=images, unlabeled=None, weights=weights)


def trial_round(job: Job) -> Job:
    """The job of a middle round, as if the pool had equally many images of each class.

    Raises:
        DataError: the pool has too few images.
    """
    return job_of_round(job, trial_labels(job))


def trial_labels(job: Job) -> dict[int, int]:
    """The pseudo-labels of `trial_round`, by position in the pool's source; builds no model.

    Raises:
        DataError: the pool has too few images.
    """
    pool, n_classes = job.training_images, len(job.setup.classes.names)
    n_images = len(pool.indices)
    spread = np.zeros((n_images, n_classes), dtype=np.float32)
    images = np.arange(n_images)
    spread[images, images % n_classes] = 1.0
    chosen = _choose(job, spread, (job.setup.settings.n_rounds + 1) // 2)
    return {pool.indices[label.row]: label.label for label in chosen}


def _settings(job: Job) -> RoundsSettings:
    assert isinstance(job.setup.settings, RoundsSettings)
    return job.setup.settings


def _classes_to_label(job: Job) -> range:
    """The classes that get pseudo-labels: classes without labels; all if no labels are used."""
    return (
        range(len(job.setup.classes.names))
        if job.labeled is None
        else job.setup.classes.pseudo_labeled
    )


def _choose(job: Job, probabilities: Probabilities, number: int) -> list[PseudoLabel]:
    """The pseudo-labels that the method chooses in a round."""
    classes = _classes_to_label(job)
    return _settings(job).choose_labels(probabilities, round_number=number, classes=classes)


def _label(job: Job, model: MethodModel, folder: TrainingFolder, number: int) -> None:
    """Writes a round's pseudo-labels."""
    pool = job.training_images
    probabilities = pool_probabilities(model, pool)
    if number == 1:
        warn_of_unpredicted(probabilities, job.setup.classes, among=_classes_to_label(job))
    write_pseudo_labels(
        folder.pseudo_labels,
        _choose(job, probabilities, number),
        pool,
        class_names=job.setup.classes.names,
        method="zeroshot" if number == 1 else job.setup.method_name,
        made_by=sha256_json([job.key(), number]),
    )


def pool_probabilities(model: MethodModel, pool: Images) -> Probabilities:
    """[N, C], softmax over all classes for the pool's images, preprocessed as on the device.

    Raises:
        DivergedError: a score is not finite.
    """
    return model.logits_of(pool, what="labeling unlabeled images").softmax(dim=-1).numpy()


def warn_of_unpredicted(
    probabilities: Probabilities, classes: Classes, *, among: Sequence[int]
) -> None:
    """Warns of classes that the model predicts for no image."""
    predicted = set(probabilities.argmax(axis=1).tolist())
    names = [classes.names[label] for label in among if label not in predicted]
    if names:
        log.warning(
            f"No unlabeled image is predicted as {name_some(names)}: such a class gets no"
            " pseudo-labels or wrong ones.\n"
            "  Check that the images show it, or try another classes.template."
        )


def true_labels(recipe: Recipe, classes: Classes, pool: Images) -> dict[int, int] | None:
    """Position in the pool's source -> true class; None if the source has no labels.

    True classes are only recorded; nothing is trained or selected with them.
    """
    assert recipe.data.unlabeled is not None  # the pool was read from it
    try:
        source = open_source(
            recipe.data.unlabeled, class_names=classes.names, labeled=True, data=recipe.data
        )
    except DataError:
        return None
    by_key = {item.key: item.label for item in source.items}
    labels = {index: by_key.get(key) for key, index in pool.positions.items()}
    return {index: label for index, label in labels.items() if label is not None}


def accuracy_percent(labels: Mapping[int, int], truth: Mapping[int, int] | None) -> float | None:
    """Share of correct pseudo-labels; None if no true label is known.

    Args:
        labels: position in the source -> pseudo-label.
        truth: position in the source -> true class.
    """
    is_correct = [truth[i] == label for i, label in labels.items() if i in truth] if truth else []
    return 100 * sum(is_correct) / len(is_correct) if is_correct else None
