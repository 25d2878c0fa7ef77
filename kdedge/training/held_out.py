"""Test and validation images of a job, and how far they may overlap with its training images."""

from __future__ import annotations

from kdedge.data.images import Images
from kdedge.errors import RecipeError
from kdedge.setup.data import RecipeData
from kdedge.setup.role import RoleSetup
from kdedge.training.job.job import HeldOut, TrainingData


def held_out_of(setup: RoleSetup, images: RecipeData, data: TrainingData) -> HeldOut:
    """The test and validation images of a role. Its training images are drawn before them.

    Warns if test images are trained on with their labels.

    Raises:
        RecipeError: the validation images that select an epoch are missing, or are test images.
        DataError: the validation images have no image of a labeled class.
    """
    selection = setup.choice.optim.selection
    held_out = HeldOut(images.test(selection), images.validation(selection))
    test, validation = held_out.test, held_out.validation
    if test is None:
        return held_out
    if validation is not None:
        shared = validation.shared_with(test)
        if shared:
            raise RecipeError(
                f"data.validation and data.test share {len(shared)} images, for example"
                f" {validation.source.items[shared[0]].key}.\n"
                "  Selecting an epoch on test images makes the test accuracy too high: use other"
                " images as data.validation."
            )
    labeled = _labeled(data)
    shared = () if labeled is None else labeled.shared_with(test)
    if labeled is not None and shared:
        setup.workspace.warn_once(
            f"{len(shared)} of the {len(labeled.indices)} labeled images that the {setup.role} is"
            " trained on are also test images, for example"
            f" {labeled.source.items[shared[0]].key}.\n"
            "  Its test accuracy will be too high: remove them from data.labeled or data.test."
        )
    return held_out


def _labeled(data: TrainingData) -> Images | None:
    if data.labeled is not None:
        return data.labeled.images
    return None if data.labels is None else data.images
