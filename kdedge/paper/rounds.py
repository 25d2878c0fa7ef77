"""Training in rounds on pseudo-labels of a recipe's unlabeled images.

The model of one round labels the images of the next. `rounds/<NN>/` in the run's folder has a
round's pseudo-labels, checkpoints and metrics. The pseudo-labels are written before the round is
trained. A resumed run goes through all rounds again, and loads the weights of finished ones from
their last checkpoints. A method's file and `data.pseudo_labels` define how labels are chosen.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
from kdedge.errors import DataError
from kdedge.files import sha256_json
from kdedge.messages import name_some
from kdedge.methods.base import MethodSettings, OwnTraining
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import MethodModel
from kdedge.runs.provenance import RoundSummary, TrainingSummary
from kdedge.setup.classes import Classes
from kdedge.training.job import Job, zero_shot_model
from kdedge.training.loop.train import train

log = logging.getLogger(__name__)


class RoundsSettings(MethodSettings):
    """Base class of the settings of a method that pseudo-labels its pool in rounds.

    Each round starts from the method's initial values. It trains on the images of `data.labeled` if
    `data_needs.labels`, and on the images of `data.unlabeled` that `choose_labels` chooses.
    """

    makes_pseudo_labels: ClassVar[bool] = True

    @property
    @abstractmethod
    def n_rounds(self) -> int:
        """Number of rounds, 1 or more."""

    @property
    def own_training(self) -> Rounds:
        """The rounds."""
        return Rounds(self)

    @abstractmethod
    def choose_labels(
        self, probabilities: Probabilities, *, round_number: int, classes: Sequence[int]
    ) -> list[PseudoLabel]:
        """Chooses a round's images and their classes, each image once.

        Args:
            probabilities: [N, C], softmax of the pool's logits over all classes. The logits are
                zero-shot CLIP's in the first round, later those of the previous round's model.
            round_number: number of the round, from 1.
            classes: the classes that have no labels; all classes if every class has labels, or if
                labels are not used.

        Returns:
            The pseudo-labels; their rows are those of the probabilities.

        Raises:
            DataError: there are too few images.
        """

    def weigh(self, is_pseudo: Tensor, *, n_labeled: int, n_pseudo: int) -> Tensor:
        """[B] float32: weights of a batch's images in a round's cross-entropy; by default equal.

        Args:
            is_pseudo: [B] bool, true for pseudo-labels.
            n_labeled: number of labeled images per epoch.
            n_pseudo: number of pseudo-labeled images per epoch.
        """
        return torch.full((len(is_pseudo),), 1 / len(is_pseudo))


@dataclass(frozen=True)
class Rounds(OwnTraining):
    """The rounds of a method that pseudo-labels its pool."""

    settings: RoundsSettings

    @property
    def n_rounds(self) -> int:
        """Number of rounds."""
        return self.settings.n_rounds

    def prepare(self, job: Job) -> Job:
        """The job with a pool that has no labeled images: pseudo-labels are for the others.

        Raises:
            DataError: the pool has too few images.
        """
        labeled = job.labeled
        unlabeled = job.unlabeled
        if labeled is not None and unlabeled is not None:
            job = replace(job, unlabeled=unlabeled.without(labeled))
        self._trial_labels(job)
        return job

    def train(
        self, job: Job, run: RunFolder, *, validate: Callable[[], float] | None
    ) -> dict[str, Any]:
        """Trains all rounds; the method ends with the weights of the last one.

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
        for number in range(1, self.n_rounds + 1):
            folder = run.round_folder(number)
            file = folder.path / "pseudo_labels.jsonl"
            if not file.exists():
                self._label(job, model, file, number)
            labels = read_pseudo_labels(file, pool, class_names=job.setup.classes.names)
            accuracy = accuracy_percent(labels, truth)
            correct = "" if accuracy is None else f", {accuracy:.2f} % of them correct"
            log.info(f"Round {number} of {self.n_rounds}: {len(labels)} pseudo-labels{correct}.")
            module.load_state_dict(first_values)
            round_job = self.job_of_round(job, labels)
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
        sums = {
            name: sum(getattr(result, name) for result in results)
            for name in ("epochs", "steps", "seconds")
        }
        training = results[-1].model_copy(update=sums).model_dump()
        return {"training": training, "rounds": [record.model_dump() for record in rounds]}

    def trial(self, job: Job) -> Job:
        """The job of a middle round, as if the pool had equally many images of each class.

        Raises:
            DataError: the pool has too few images.
        """
        return self.job_of_round(job, self._trial_labels(job))

    def job_of_round(self, job: Job, labels: Mapping[int, int]) -> Job:
        """The job of one round, which trains on labeled and on pseudo-labeled images.

        Args:
            job: the job of all rounds.
            labels: position in the pool's source -> class.
        """
        labeled = job.labeled
        pseudo = job.training_images.labeled_as(labels)
        n_labeled = 0 if labeled is None else len(labeled.indices)
        n_items = 0 if labeled is None else len(labeled.source.items)

        def weights(positions: Sequence[int]) -> Tensor:
            is_pseudo = torch.tensor([position >= n_items for position in positions])
            return self.settings.weigh(is_pseudo, n_labeled=n_labeled, n_pseudo=len(labels))

        images = pseudo if labeled is None else labeled.joined_with(pseudo)
        return replace(job, labeled=images, unlabeled=None, weights=weights)

    def _trial_labels(self, job: Job) -> dict[int, int]:
        """The pseudo-labels of `trial`, by position in the pool's source; builds no model.

        Raises:
            DataError: the pool has too few images.
        """
        pool = job.training_images
        n_classes = len(job.setup.classes.names)
        n_images = len(pool.indices)
        spread = np.zeros((n_images, n_classes), dtype=np.float32)
        images = np.arange(n_images)
        spread[images, images % n_classes] = 1.0
        chosen = self._choose(job, spread, (self.n_rounds + 1) // 2)
        return {pool.indices[label.row]: label.label for label in chosen}

    def _choose(self, job: Job, probabilities: Probabilities, number: int) -> list[PseudoLabel]:
        """The pseudo-labels that the method chooses in a round."""
        classes = _classes_to_label(job)
        return self.settings.choose_labels(probabilities, round_number=number, classes=classes)

    def _label(self, job: Job, model: MethodModel, file: Path, number: int) -> None:
        """Writes a round's pseudo-labels."""
        pool = job.training_images
        probabilities = pool_probabilities(model, pool)
        if number == 1:
            warn_of_unpredicted(probabilities, job.setup.classes, among=_classes_to_label(job))
        write_pseudo_labels(
            file,
            self._choose(job, probabilities, number),
            pool,
            class_names=job.setup.classes.names,
            method="zeroshot" if number == 1 else job.setup.method_name,
            made_by=sha256_json([job.key(), number]),
        )


def _classes_to_label(job: Job) -> range:
    """The classes that get pseudo-labels: classes without labels; all if no labels are used."""
    return (
        range(len(job.setup.classes.names))
        if job.labeled is None
        else job.setup.classes.pseudo_labeled
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
