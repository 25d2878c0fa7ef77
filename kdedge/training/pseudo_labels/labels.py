"""Pseudo-labels of a recipe's unlabeled images, from a model or a file, and their accuracy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdedge.config.recipe import Recipe
from kdedge.data.classes import class_list_hash
from kdedge.data.images import Images
from kdedge.data.open import open_source
from kdedge.data.pseudo_labels import (
    Origin,
    Probabilities,
    PseudoLabel,
    read_pseudo_labels,
    write_pseudo_labels,
)
from kdedge.data.sources import name_some
from kdedge.errors import DataError, DivergedError
from kdedge.runs.measure import compute_logits
from kdedge.runs.protocol import Model
from kdedge.setup.classes import Classes

log = logging.getLogger(__name__)


def positions_of(pool: Images) -> dict[str, int]:
    """Maps the keys of the images in use to their positions in the source."""
    return {pool.source.items[index].key: index for index in pool.indices}


def pool_probabilities(model: Model, pool: Images) -> Probabilities:
    """[N, C]: softmax over all classes for the images in use, preprocessed as on the device.

    Raises:
        DivergedError: a score is not finite.
    """
    logits = compute_logits(model, pool, what="labeling unlabeled images")
    if not bool(logits.isfinite().all()):
        raise DivergedError(
            "The model's scores of unlabeled images are not finite.\n"
            "  Its training diverged: train again with a lower optim.lr or optim.clip_grad_norm: 1."
        )
    probabilities: Probabilities = logits.softmax(dim=-1).numpy()
    return probabilities


def warn_of_unpredicted(
    probabilities: Probabilities, classes: Classes, *, among: Sequence[int]
) -> None:
    """Warns of classes that the model predicts for no image."""
    predicted = set(probabilities.argmax(axis=1).tolist())
    names = [classes.names[label] for label in among if label not in predicted]
    if names:
        log.warning(
            "No unlabeled image is predicted as %s: such a class gets no pseudo-labels or wrong"
            " ones.\n"
            "  Check that the images show it, or try another classes.template.",
            name_some(names),
        )


def in_source(labels: Sequence[PseudoLabel], pool: Images) -> list[PseudoLabel]:
    """Converts pseudo-labels of rows of the probabilities to ones of positions in the source."""
    return [PseudoLabel(pool.indices[one.image], one.label, one.confidence) for one in labels]


def write_for(
    pool: Images,
    labels: Sequence[PseudoLabel],
    path: Path,
    *,
    classes: Classes,
    method: str,
    provenance: str,
) -> None:
    """Writes pseudo-labels of positions in the pool's source; see `data.pseudo_labels`."""
    write_pseudo_labels(
        path,
        labels,
        origin=Origin(
            method=method,
            provenance_hash=provenance,
            class_list=class_list_hash(classes.names),
            image_list=pool.list_hash,
        ),
        class_names=classes.names,
        keys={index: key for key, index in positions_of(pool).items()},
    )


def read_for(pool: Images, path: Path, *, classes: Classes) -> dict[int, int]:
    """Reads a file that `write_for` wrote: position in the pool's source -> class."""
    labels = read_pseudo_labels(
        path,
        class_names=classes.names,
        image_list=pool.list_hash,
        positions=positions_of(pool),
    )
    return {one.image: one.label for one in labels}


def true_labels(recipe: Recipe, classes: Classes, pool: Images) -> dict[int, int] | None:
    """Position in the pool's source -> true class, if the source has labels.

    They are only recorded; nothing is trained or selected with them.
    """
    assert recipe.data.unlabeled is not None  # the pool was read from it
    try:
        source = open_source(
            recipe.data.unlabeled, class_names=classes.names, labeled=True, data=recipe.data
        )
    except DataError:
        return None
    known = {item.key: item.label for item in source.items}
    found = {index: known.get(key) for key, index in positions_of(pool).items()}
    return {index: label for index, label in found.items() if label is not None}


def accuracy_percent(labels: Mapping[int, int], truth: Mapping[int, int] | None) -> float | None:
    """Share of correct pseudo-labels; None if no true label is known.

    Args:
        labels: position in the source -> pseudo-label.
        truth: position in the source -> true class.
    """
    known = [truth[i] == label for i, label in labels.items() if i in truth] if truth else []
    return 100 * sum(known) / len(known) if known else None
