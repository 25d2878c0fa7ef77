"""Accuracy of a finished run on the test images of its recipe."""

from __future__ import annotations

from pathlib import Path

import torch

from kdedge.clip.image_backbone import AnyBackbone
from kdedge.config.load import load_recipe
from kdedge.errors import RecipeError
from kdedge.eval_details import EvalDetails
from kdedge.methods.protocol import Method, WithoutClassVectors
from kdedge.results import EvalResult
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import measure
from kdedge.runs.model import (
    StoredTeacher,
    load_student,
    load_teacher,
    load_without_class_vectors,
)
from kdedge.setup.classes import load_classes
from kdedge.setup.images import load_images, require_images
from kdedge.setup.method import choose_method, has_class_vectors


def evaluate_run(
    run: RunFolder, *, device: torch.device, cache: Path | None, overrides: tuple[str, ...] = ()
) -> tuple[EvalResult, EvalDetails]:
    """Measures a finished run on the test images of its recipe.

    Args:
        run: teacher, student or baseline.
        device: where.
        cache: folder of text features.
        overrides: `a.b=c` texts over the run's recipe, to measure on other images.

    Raises:
        RecipeError: the run is not finished or its recipe has no test images.
    """
    if not run.is_finished:
        raise RecipeError(
            f"{run.path} is not finished.\n  Go on with it: add --resume to its command."
        )
    loaded = load_recipe(run.recipe, overrides)
    classes = load_classes(loaded.recipe)
    images = require_images(
        load_images(loaded.recipe, "test", classes), "test", "accuracy is measured on it"
    )
    model: Method | StoredTeacher | WithoutClassVectors
    backbone: AnyBackbone
    choice = choose_method(loaded, run.kind)
    if run.kind == "student":
        model, backbone = load_student(run, loaded, classes, device=device, cache=cache)
    elif not has_class_vectors(choice):
        model, backbone = load_without_class_vectors(run, classes, device=device, cache=cache)
    else:
        teacher = load_teacher(run, classes, device=device, cache=cache)
        model, backbone = teacher, teacher.backbone
    return measure(
        model,
        images,
        classes,
        preprocess=backbone.preprocess,
        device=device,
        selection=choice.optim.selection,
    )
