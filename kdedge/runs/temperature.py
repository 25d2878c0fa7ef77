"""The temperature of a run's scores, fitted to images on which it is not measured."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np

from kdedge.data.images import Images
from kdedge.errors import DataError
from kdedge.evaluation.accuracy import temperature_of_labels, temperature_of_share
from kdedge.runs.model import RunModel, load_teacher_of
from kdedge.runtime.artifact import Temperature

log = logging.getLogger(__name__)


_MAX_IMAGES = 1000
"""Images to which a temperature is fitted; their mean confidence is exact to about a point."""


def fit_temperature(model: RunModel, *, exclude_digests: Collection[str]) -> Temperature | None:
    """Fits a temperature to labeled images, or to the teacher's predictions on unlabeled ones.

    The labeled images are `data.validation` or, if the model was not trained on them, the labeled
    images that the recipe draws. If these are not of two classes, the temperature makes the mean
    confidence on the unlabeled images equal to the model's agreement with the teacher.

    Args:
        model: the run's model.
        exclude_digests: SHA-256 of images that are left out, since the scores are measured on them.

    Returns:
        The temperature; None if no temperature fits, which a warning explains.

    Raises:
        DataError: there are no images to fit it to, or no teacher.
        DivergedError: a logit is not finite.
    """
    labeled = labeled_without(model, exclude_digests)
    if labeled is not None:
        images, where = labeled
        sample = images.spread(_MAX_IMAGES)
        logits = model.logits_of(sample, what="fitting the temperature").numpy()
        value = temperature_of_labels(logits, np.array(model.labels_of(sample)))
    else:
        where = "data.unlabeled"
        pool = model.images.load("unlabeled")
        teacher = load_teacher_of(model)
        free = pool and [i for i in pool.indices if pool.digests[i] not in exclude_digests]
        if pool is None or not free or teacher is None:
            raise DataError(
                f"{model.run.path}: to calibrate its scores, there are neither labeled images of"
                " two classes, nor unlabeled images to spare with a teacher.\n"
                "  Add data.validation with images of each class, as it may be trained on"
                " data.labeled; or leave export.calibrate out."
            )
        images = pool.only(free)
        sample = images.spread(_MAX_IMAGES)
        logits = model.logits_of(sample, what="fitting the temperature").numpy()
        targets = teacher.logits_of(sample, what="running the teacher").numpy()
        agreement = float((logits.argmax(axis=1) == targets.argmax(axis=1)).mean())
        value = temperature_of_share(logits, agreement)
    n_images = len(sample.indices)
    if value is None:
        log.warning(
            f"The scores are not calibrated: no temperature fits the {n_images} images of {where},"
            " as when all are classified right.\n"
            "  Add other labeled images as data.validation."
        )
        return None
    description = f"{n_images} of {len(images.indices)} images of {where}"
    return Temperature(
        value=value,
        fitted_to="teacher" if labeled is None else "labels",
        images=description,
        n_images=n_images,
    )


def labeled_without(model: RunModel, exclude_digests: Collection[str]) -> tuple[Images, str] | None:
    """Validation images of the run's classes; if there are none, labeled images not trained on.

    Args:
        model: the run's model.
        exclude_digests: SHA-256 of images that are left out.

    Returns:
        The images, each with a label, and their key in the recipe; None unless they are of two
        classes or more, since one class's labels say nothing of the others' scores.
    """
    recipe = model.recipe
    setup = model.setup
    if recipe.data.validation is not None:
        images = model.images.drawn_validation()
        key = "validation"
    elif recipe.data.labeled is not None and not setup.data_needs.labels:
        images = model.images.drawn_labeled(setup.role)
        key = "labeled"
    else:
        return None
    images = images.of_classes(model.images.classes.labeled)
    labels = dict(zip(images.indices, model.labels_of(images), strict=True))
    usable = [i for i in images.indices if labels[i] is not None]
    usable = [i for i in usable if images.digests[i] not in exclude_digests]
    n_classes = len({labels[i] for i in usable})
    return (images.only(usable), f"data.{key}") if n_classes > 1 else None
