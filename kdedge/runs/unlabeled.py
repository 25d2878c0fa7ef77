"""Measures a model on images without labels: agreement with its teacher, confidence, classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from kdedge.data.images import Images, spread
from kdedge.results import UnlabeledResult
from kdedge.runs.measure import LogitSource, Model, finite_logits, sample_images, top_classes
from kdedge.setup.data import RecipeData

log = logging.getLogger(__name__)

MOST_IMAGES = 500
"""One point of agreement is 5 images, as for exported files."""

_FEW_IMAGES = 20  # with fewer, one image is more than 5 points of agreement
_N_SAMPLES = 12
_N_DIFFERENT = 6  # largest number of samples


def unlabeled_sample(data: RecipeData, *, others: bool = False) -> tuple[Images, str] | None:
    """Images to measure a model without test images on, and their description.

    They are those held out of `data.unlabeled`, or else some of all its images.

    Args:
        data: the recipe's images.
        others: whether they are other images than those that the run was trained on.
    """
    held_out = None if others else data.held_out()
    images = held_out if held_out is not None and held_out.indices else data.load("unlabeled")
    if images is None or not images.indices:
        return None
    if len(images.indices) < _FEW_IMAGES:
        log.warning(
            "There are no test images, and %d of data.unlabeled are too few to measure the"
            " student.\n"
            "  Raise data.unlabeled.hold_out, add images there, or add labeled images as"
            " data.test.",
            len(images.indices),
        )
    few = images.only([images.indices[i] for i in spread(len(images.indices), MOST_IMAGES)])
    if images is held_out:
        where = "held out of data.unlabeled"
    else:
        where = "of data.unlabeled" + (" as --set names them" if others else ", trained on")
    return few, f"{len(few.indices)} of {len(images.indices)} images {where}"


def measure_without_labels(
    model: Model, images: Images, what: str, *, teacher: Model | LogitSource | None
) -> UnlabeledResult:
    """Measures a model on images without labels.

    Args:
        model: the model.
        images: one or more images.
        what: describes the images, for the record.
        teacher: a teacher with the same class list; None if there is none.

    Raises:
        DivergedError: a logit is not finite.
    """
    names = model.class_names
    scores, best = top_classes(finite_logits(model, images, what="evaluating images"))
    predicted, teacher_classes = best[:, 0].tolist(), None
    agreement, teacher_confidence = None, None
    if teacher is not None:
        logits = finite_logits(teacher, images, what="running the teacher")
        teacher_scores, taught = top_classes(logits)
        teacher_classes, teacher_confidence = taught[:, 0].tolist(), _mean_percent(teacher_scores)
        agreement = 100 * int((best[:, 0] == taught[:, 0]).sum()) / len(predicted)
    chosen = _samples(predicted, teacher_classes, scores[:, 0].tolist())
    return UnlabeledResult(
        n_images=len(predicted),
        images=what,
        images_hash=images.hash_with(names),
        agreement_percent=agreement,
        confidence_percent=_mean_percent(scores),
        teacher_confidence_percent=teacher_confidence,
        predicted=_counts(predicted, names),
        teacher_predicted={} if teacher_classes is None else _counts(teacher_classes, names),
        n_classes=len(names),
        samples=sample_images(
            images.only([images.indices[i] for i in chosen]),
            (scores[chosen], best[chosen]),
            names=names,
            teacher_classes=None
            if teacher_classes is None
            else [teacher_classes[i] for i in chosen],
        ),
    )


def _mean_percent(scores: Tensor) -> float:
    return min(100.0, 100 * float(scores[:, 0].mean()))


def _counts(predicted: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    counts = Counter(predicted)
    return {names[c]: counts[c] for c in sorted(counts)}


def _samples(
    predicted: Sequence[int], teacher_classes: Sequence[int] | None, scores: Sequence[float]
) -> list[int]:
    """Positions of samples: where the two differ, the surest first, then evenly spaced ones."""
    everywhere = list(range(len(predicted)))
    differs = (
        []
        if teacher_classes is None
        else [i for i in everywhere if predicted[i] != teacher_classes[i]]
    )
    first = sorted(differs, key=lambda i: -scores[i])[:_N_DIFFERENT]
    rest = [i for i in everywhere if i not in first]
    return first + [rest[i] for i in spread(len(rest), _N_SAMPLES - len(first))]
