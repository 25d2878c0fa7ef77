"""Measures a model on a recipe's images, as on the device: logits, accuracy, sample images.

On images without labels it measures agreement with the teacher, confidence and predicted classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdedge.config.load import load_recipe
from kdedge.data.images import Images, spread
from kdedge.errors import DataError
from kdedge.evaluation.accuracy import (
    accuracy_result,
    calibration_error_percent,
    evaluation_details,
)
from kdedge.methods.base import Teacher
from kdedge.records.evaluation import (
    SampleImage,
    SampleKind,
    Selection,
    UnlabeledResult,
)
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import (
    MethodModel,
    RunModel,
    load_run,
    load_teacher_of,
    warn_of_other_test_images,
)
from kdedge.runs.results import Evaluation
from kdedge.runs.temperature import fit_temperature
from kdedge.setup.classes import Classes, load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.workspace import Workspace

log = logging.getLogger(__name__)

_N_TOP = 3
_N_PER_KIND = 4  # twelve in a report
_MAX_UNLABELED = 500  # one point of agreement is 5 images, as for exported files

_FEW_IMAGES = 20  # with fewer, one image is more than 5 points of agreement
_N_SAMPLES = 12
_N_DIFFERENT = 6  # largest number of samples on which model and teacher differ


def evaluate_run(
    run: RunFolder, workspace: Workspace, *, overrides: Mapping[str, Any] | None, with_samples: bool
) -> Evaluation | UnlabeledResult:
    """Measures a finished run on the test images of its recipe, or if it has none, on unlabeled.

    Args:
        run: run of a teacher, a student or a baseline.
        workspace: the command's workspace.
        overrides: keys that replace the recipe's, to measure on other images.
        with_samples: whether to keep a few test images with predictions of the model and of its
            teacher.

    Raises:
        RecipeError: the run is not finished, or its recipe has neither kind of images.
    """
    names = load_classes(load_recipe(run.recipe, overrides).recipe).names
    model = load_run(run, workspace, overrides=overrides, names=names, label_names=names)
    sample = _sample_of_run(model) if model.recipe.data.test is None else None
    if sample is not None:
        return measure_without_labels(model, *sample, teacher=load_teacher_of(model))
    images = model.images.require("test", "accuracy is measured on it")
    warn_of_other_test_images(model, images)
    trained_classes = model.setup.classes.names
    n_new = len({*model.class_names} - {*trained_classes})
    if run.role == "student" and model.class_names != trained_classes:
        change = f"{n_new} of its names are new" if n_new else "its order, or fewer names"
        log.warning(
            f"The class list differs from the run's: {change}. Class vectors are looked up by name;"
            " base and novel classes follow the current list."
        )
    temperature = None
    if model.recipe.export.calibrate:
        measured_on = {images.digests[index] for index in images.indices}
        try:
            fitted = fit_temperature(model, exclude_digests=measured_on)
            temperature = None if fitted is None else fitted.value
        except DataError as error:  # a teacher or baseline may have no images to fit it on
            log.warning(f"The calibrated scores are not measured: {error}")
    return measure_accuracy(
        model,
        images,
        model.classes,
        selection=model.setup.optim.selection,
        temperature=temperature,
        with_samples=with_samples,
        teacher=load_teacher_of(model) if with_samples else None,
    )


def measure_accuracy(
    model: MethodModel,
    images: Images,
    classes: Classes,
    *,
    selection: Selection = "last",
    temperature: float | None = None,
    with_samples: bool = False,
    teacher: Teacher | None = None,
) -> Evaluation:
    """Evaluates a model on labeled images; base and novel images among names of their own half.

    Args:
        model: a model of these classes.
        images: images with labels.
        classes: the class list and its split.
        selection: how the model's epoch was chosen, for the record.
        temperature: if given, the calibration error of logits divided by it is measured, too.
        with_samples: keep a few images with the model's predictions.
        teacher: also classifies these few images if it can; None if there is none.
    """
    logits = model.logits_of(images, what="evaluating images")
    measured = measure_logits(logits, images, classes, selection=selection, temperature=temperature)
    if not with_samples:
        return measured
    top = top_classes(logits)
    best = top.classes[:, 0].tolist()
    samples: dict[SampleKind, tuple[SampleImage, ...]] = {}
    pairs = list(zip(_labels(images).tolist(), best, strict=True))
    for kind, chosen in _choose_samples(top.scores[:, 0].tolist(), pairs).items():
        sample = images.only([images.indices[i] for i in chosen])
        by_teacher = None
        if teacher is not None and chosen:
            outputs = teacher.logits_of(sample, what="running the teacher")
            by_teacher = None if outputs is None else outputs.argmax(dim=1).tolist()
        samples[kind] = _sample_images(
            sample, top.only(chosen), names=classes.names, teacher_classes=by_teacher
        )
    return measured._replace(details=replace(measured.details, samples=samples))


def measure_logits(
    logits: Tensor,
    images: Images,
    classes: Classes,
    *,
    selection: Selection = "last",
    temperature: float | None = None,
) -> Evaluation:
    """Evaluates the logits [N, C] of labeled images; see `measure_accuracy`."""
    labels = _labels(images)
    result = accuracy_result(
        logits, labels, class_names=classes.names, split=classes.split, selection=selection
    )
    result = replace(result, images_hash=images.hash_with(classes.names))
    if temperature is not None:
        error = calibration_error_percent(logits / temperature, labels)
        result = replace(result, temperature=temperature, calibrated_ece_percent=error)
    details = evaluation_details(logits, labels, class_names=classes.names, split=classes.split)
    return Evaluation(result, details)


def _labels(images: Images) -> Tensor:
    labels = [images.source.items[index].label for index in images.indices]
    return torch.tensor(labels, dtype=torch.int64)


class TopClasses(NamedTuple):
    """The most likely classes of each image, best first.

    Attributes:
        scores: [N, 3 or fewer], their softmax scores.
        classes: [N, 3 or fewer], their positions in the class list.
    """

    scores: Tensor
    classes: Tensor

    def only(self, chosen: Sequence[int]) -> TopClasses:
        """Those of some images."""
        rows = list(chosen)
        return TopClasses(self.scores[rows], self.classes[rows])


def top_classes(logits: Tensor) -> TopClasses:
    """The classes of each image with the highest softmax scores."""
    top = logits.double().softmax(dim=1).topk(min(_N_TOP, logits.shape[1]))
    return TopClasses(top.values, top.indices)


def _sample_images(
    images: Images,
    top: TopClasses,
    *,
    names: Sequence[str],
    teacher_classes: Sequence[int] | None,
) -> tuple[SampleImage, ...]:
    """Makes the records of images with their predictions.

    Args:
        images: the images.
        top: the model's predictions for them.
        names: the class list.
        teacher_classes: the teacher's classes for them; None if there is no teacher.
    """
    samples = []
    for i, index in enumerate(images.indices):
        item = images.source.items[index]
        predictions = []
        for c, score in zip(top.classes[i].tolist(), top.scores[i].tolist(), strict=True):
            percent = min(100.0, 100 * score)  # a sum of softmaxes may exceed 1 by rounding
            predictions.append((names[c], percent))
        samples.append(
            SampleImage(
                image=item.key,
                top=tuple(predictions),
                teacher=None if teacher_classes is None else names[teacher_classes[i]],
                label=None if item.label is None else names[item.label],
            )
        )
    return tuple(samples)


def _choose_samples(
    scores: Sequence[float], pairs: Sequence[tuple[int, int]]
) -> dict[SampleKind, list[int]]:
    """Positions of sample images by kind; no two wrong ones confuse the same classes.

    Args:
        scores: the highest softmax score of each image.
        pairs: class and predicted class of each image.
    """
    by_score = sorted(range(len(scores)), key=lambda i: scores[i])
    surest_of_pair = {pairs[i]: i for i in by_score if pairs[i][0] != pairs[i][1]}
    wrong = sorted(surest_of_pair.values(), key=lambda i: -scores[i])[:_N_PER_KIND]
    unsure = [i for i in by_score if i not in wrong][:_N_PER_KIND]
    right = [i for i, (label, best) in enumerate(pairs) if label == best]
    right = [i for i in right if i not in unsure]
    right = [right[i] for i in spread(len(right), _N_PER_KIND)]
    return {"right": right, "wrong": wrong, "most unsure": unsure}


def _sample_of_run(model: RunModel) -> UnlabeledSample | None:
    """The `unlabeled_sample` of a run's recipe with overrides, which may name another source."""
    recipe = model.recipe
    recorded = model.recorded_recipe
    unlabeled = recipe.data.unlabeled
    own = recorded.data.unlabeled
    if unlabeled is None:
        return None
    # Keys that choose among the images of a source
    no_draw = {"hold_out": None, "per_class": None, "include_test": None}
    is_new = own is None or unlabeled.model_copy(update=no_draw) != own.model_copy(update=no_draw)
    # No image of another source was trained on; of the run's own source, the held-out ones were not
    spec = unlabeled.model_copy(update={"hold_out": None}) if is_new else own
    seed = recipe.seed if is_new else recorded.seed
    data = recipe.data.model_copy(update={"unlabeled": spec})
    recipe = recipe.model_copy(update={"data": data, "seed": seed})
    images = RecipeImages(recipe, model.images.classes, model.setup.workspace)
    return unlabeled_sample(images, is_new=is_new)


class UnlabeledSample(NamedTuple):
    """Unlabeled images on which a model is measured, and their description."""

    images: Images
    what: str


def unlabeled_sample(images: RecipeImages, *, is_new: bool = False) -> UnlabeledSample | None:
    """Unlabeled images on which to measure a model; None if there are none.

    They are images held out of `data.unlabeled`; if there are none, a sample of all its images.

    Args:
        images: the recipe's.
        is_new: whether the run was trained on another source of unlabeled images.
    """
    held_out = None if is_new else images.held_out()
    pool = held_out if held_out is not None and held_out.indices else images.load("unlabeled")
    if pool is None or not pool.indices:
        return None
    if len(pool.indices) < _FEW_IMAGES:
        log.warning(
            f"There are no test images, and {len(pool.indices)} of data.unlabeled are too few to"
            " measure the student.\n"
            "  Raise data.unlabeled.hold_out, add images there, or add labeled images as data.test."
        )
    sample = pool.spread(_MAX_UNLABELED)
    if pool is held_out:
        where = "held out of data.unlabeled"
    else:
        where = "of data.unlabeled as overridden" if is_new else "of data.unlabeled, trained on"
    what = f"{len(sample.indices)} of {len(pool.indices)} images {where}"
    return UnlabeledSample(sample, what)


def measure_without_labels(
    model: MethodModel, images: Images, what: str, *, teacher: Teacher | None
) -> UnlabeledResult:
    """Measures a model on images without labels.

    Args:
        model: the model.
        images: one or more images.
        what: description of the images, for the record.
        teacher: a teacher with the same class list, compared if it has logits for these images;
            None if there is none.

    Raises:
        DivergedError: a logit is not finite.
    """
    names = model.class_names
    top = top_classes(model.logits_of(images, what="evaluating images"))
    best = top.classes[:, 0]
    predicted = best.tolist()
    agreement = teacher_confidence = teacher_classes = None
    logits = None if teacher is None else teacher.logits_of(images, what="running the teacher")
    if logits is not None:
        teacher_top = top_classes(logits)
        teacher_best = teacher_top.classes[:, 0]
        teacher_confidence = _mean_percent(teacher_top.scores)
        teacher_classes = teacher_best.tolist()
        agreement = 100 * int((best == teacher_best).sum()) / len(predicted)
    chosen = _choose_unlabeled_samples(predicted, teacher_classes, top.scores[:, 0].tolist())
    by_teacher = None
    if teacher_classes is not None:
        by_teacher = [teacher_classes[i] for i in chosen]
    return UnlabeledResult(
        n_images=len(predicted),
        images=what,
        images_hash=images.hash_with(names),
        agreement_percent=agreement,
        confidence_percent=_mean_percent(top.scores),
        teacher_confidence_percent=teacher_confidence,
        predicted=_counts(predicted, names),
        teacher_predicted={} if teacher_classes is None else _counts(teacher_classes, names),
        n_classes=len(names),
        samples=_sample_images(
            images.only([images.indices[i] for i in chosen]),
            top.only(chosen),
            names=names,
            teacher_classes=by_teacher,
        ),
    )


def _mean_percent(scores: Tensor) -> float:
    """The mean of the highest scores, in percent."""
    return min(100.0, 100 * float(scores[:, 0].mean()))


def _counts(predicted: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """Name of each predicted class -> number of images."""
    counts = Counter(predicted)
    return {names[c]: counts[c] for c in sorted(counts)}


def _choose_unlabeled_samples(
    predicted: Sequence[int], teacher_classes: Sequence[int] | None, scores: Sequence[float]
) -> list[int]:
    """Positions of samples: the surest where model and teacher differ, then evenly spaced ones."""
    positions = list(range(len(predicted)))
    different = []
    if teacher_classes is not None:
        different = [i for i in positions if predicted[i] != teacher_classes[i]]
    surest = sorted(different, key=lambda i: -scores[i])[:_N_DIFFERENT]
    rest = [i for i in positions if i not in surest]
    return surest + [rest[i] for i in spread(len(rest), _N_SAMPLES - len(surest))]
