"""Labeled images of a recipe: few-shot draws, test and validation images."""

from __future__ import annotations

from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import LabeledSpec, Recipe
from kdedge.data.few_shot import Draws
from kdedge.distributed import ProcessGroup
from kdedge.errors import DataError
from kdedge.setup.classes import Classes
from kdedge.setup.images import Images, load_images, require_images
from kdedge.setup.method import (
    Role,
    choose_method,
)


def few_shot_images(images: Images, spec: LabeledSpec, classes: Classes, draws: Draws) -> Images:
    """The images of a labeled source that are used: as many of each class as it says, or all."""
    if spec.shots is None:
        return images
    return images.only(
        draws.take(spec, images.source, images.indices, shots=spec.shots, class_names=classes.names)
    )


def labeled_draws(recipe: Recipe) -> Draws:
    """What draws the labeled images, and those of validation after them."""
    spec = recipe.data.labeled
    shots = None if spec is None else spec.shots
    return Draws(spec, shots=shots, seed=recipe.seed, data=recipe.data)


def labeled_images(
    loaded: LoadedRecipe, role: Role, classes: Classes, draws: Draws, group: ProcessGroup
) -> Images:
    """The images a teacher or a baseline is trained on: drawn over all classes, then the labeled.

    The order of the two steps is the benchmark's: the base classes' images do not depend on the
    split.
    """
    recipe = loaded.recipe
    images = require_images(
        load_images(recipe, "labeled", classes, group=group),
        "labeled",
        f"a {role} learns from labeled images",
    )
    spec = recipe.data.labeled
    assert spec is not None  # require_images has seen to it
    return few_shot_images(images, spec, classes, draws).of_classes(classes.labeled)


def images_to_measure(
    loaded: LoadedRecipe, role: Role, classes: Classes, group: ProcessGroup
) -> Images | None:
    """The images that accuracy is measured on, if there are any.

    Raises:
        RecipeError: they are to choose an epoch, and there are none.
        DataError: they are to choose one, and none is of a labeled class.
    """
    images = load_images(loaded.recipe, "test", classes, group=group)
    if choose_method(loaded, role).optim.selection == "test":
        _check_chooses(require_images(images, "test", _chooses("test")), "test", classes)
    return images


def validation_images(
    loaded: LoadedRecipe, role: Role, classes: Classes, draws: Draws, group: ProcessGroup
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
        load_images(recipe, "validation", classes, group=group),
        "validation",
        _chooses("validation"),
    )
    spec, labeled = recipe.data.validation, recipe.data.labeled
    assert spec is not None  # require_images has seen to it
    is_rank0 = spec.shots is not None and not draws.has_begun
    if is_rank0 and labeled is not None and labeled.shots is not None:
        before = load_images(recipe, "labeled", classes, group=group)
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
