"""Evaluates a finished run, on the test images of its recipe or without labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kdedge.config.load import load_recipe
from kdedge.errors import DataError
from kdedge.records.evaluation import EvalDetails, EvalResult, UnlabeledResult
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import measure_accuracy, measure_without_labels, unlabeled_sample
from kdedge.runs.model import load_run, load_teacher_of, warn_of_other_test_images
from kdedge.runs.temperature import fit_temperature
from kdedge.setup.classes import load_classes
from kdedge.setup.data import RecipeData
from kdedge.setup.workspace import Workspace

log = logging.getLogger(__name__)


def evaluate_run(
    run: RunFolder, workspace: Workspace, *, overrides: Mapping[str, Any] | None, with_samples: bool
) -> tuple[EvalResult, EvalDetails] | UnlabeledResult:
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
    recipe = load_recipe(run.recipe, overrides).recipe
    classes = load_classes(recipe)
    model = load_run(run, workspace, overrides=overrides, names=classes.names)
    if recipe.data.test is None and recipe.data.unlabeled is not None:
        unlabeled, own = recipe.data.unlabeled, model.own_recipe.data.unlabeled
        # Keys that choose among the images of a source
        draw = dict.fromkeys(("hold_out", "per_class", "include_test"))
        is_new = own is None or unlabeled.model_copy(update=draw) != own.model_copy(update=draw)
        # No image of another source is a training image; of the same, only the held-out are none
        spec = unlabeled.model_copy(update={"hold_out": None}) if is_new else own
        seed = recipe.seed if is_new else model.own_recipe.seed
        data_spec = recipe.data.model_copy(update={"unlabeled": spec})
        recipe = recipe.model_copy(update={"data": data_spec, "seed": seed})
        sample = unlabeled_sample(RecipeData(recipe, classes, workspace), is_new=is_new)
        if sample is not None:
            return measure_without_labels(model, *sample, teacher=load_teacher_of(model))
    images = RecipeData(recipe, classes, workspace).require("test", "accuracy is measured on it")
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
        selection=model.setup.choice.optim.selection,
        temperature=temperature,
        with_samples=with_samples,
        teacher=load_teacher_of(model) if with_samples else None,
    )
