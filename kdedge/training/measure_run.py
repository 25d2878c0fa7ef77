"""Measuring a finished run again: its own recipe, its own tensors, the images on disk now."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from kdedge.clip.class_vectors import ClassVectors, load_class_vectors
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.errors import RecipeError, SetupError
from kdedge.eval_details import EvalDetails
from kdedge.methods._protocol import Method, WithoutClassVectors
from kdedge.results import EvalResult
from kdedge.training.measure import measure
from kdedge.training.parts import (
    Classes,
    build_method,
    choose_method,
    load_classes,
    load_images,
    load_student_backbone,
    require_images,
)
from kdedge.training.runs import RunFolder
from kdedge.training.teachers import (
    StoredTeacher,
    has_class_vectors,
    load_teacher,
    load_trained,
    load_without_class_vectors,
)


class StoredVectors:
    """The class vectors that a student keeps of its teacher: enough to answer, not to learn.

    Attributes:
        scale: not known without the teacher; the student has its own.
    """

    scale = float("nan")

    def __init__(self, vectors: ClassVectors, device: torch.device) -> None:
        self._vectors = vectors.vectors.to(device)

    def class_vectors(self) -> Tensor:
        """[C, D_teacher]."""
        return self._vectors

    def forward_features(self, images: Tensor) -> Tensor:
        """There is no teacher here."""
        raise SetupError("Only the teacher's class vectors are here, not the teacher.")


def load_student(
    run: RunFolder,
    loaded: LoadedRecipe,
    classes: Classes,
    *,
    device: torch.device,
    cache: Path | None,
) -> tuple[Method, AnyBackbone]:
    """Loads a student run for a class list; class vectors go by name, in the order of `classes`."""
    stored = load_class_vectors(run.class_vectors)
    selected = stored.select(classes.names)
    if classes.names != stored.class_names:
        logging.getLogger(__name__).warning(
            "The class list is not the one of the run (%s): class vectors go by name, base and"
            " novel by the list as it is now.",
            "the same names in another order"
            if set(classes.names) == set(stored.class_names)
            else f"{len(classes.names)} of its {len(stored.class_names)} names",
        )
    choice = choose_method(loaded, "student")
    backbone = load_student_backbone(loaded.recipe, choice, device=device, cache=cache)
    method = build_method(
        choice,
        backbone,
        classes,
        seed=loaded.recipe.seed,
        teacher=StoredVectors(selected, device),
    )
    load_trained(method, run.weights, backbone, made_by=stored.made_by)
    return method, backbone


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
