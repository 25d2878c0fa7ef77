"""The images that a job is measured on, and what they may share with those it learns from."""

from __future__ import annotations

from kdedge.errors import RecipeError
from kdedge.setup.data import RecipeData
from kdedge.setup.images import Images
from kdedge.setup.role import RoleSetup
from kdedge.training.job.job import HeldOut, TrainingData


def held_out_of(setup: RoleSetup, images: RecipeData, data: TrainingData) -> HeldOut:
    """The test and validation images of a role; its training images are drawn before them.

    It warns where labels of test images are trained on.

    Raises:
        RecipeError: images that choose an epoch are missing, or are test images.
        DataError: they have no image of a labeled class.
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
                f"data.validation and data.test share {len(shared)} images, first"
                f" {validation.source.items[shared[0]].key}.\n"
                "  An epoch chosen on test images makes the test worthless: use other images."
            )
    labeled = _labeled(data)
    shared = () if labeled is None else labeled.shared_with(test)
    if labeled is not None and shared:
        setup.workspace.warn_once(
            f"{len(shared)} of the {len(labeled.indices)} labeled images that the {setup.role}"
            f" learns from are test images, too, first {labeled.source.items[shared[0]].key}.\n"
            "  Its accuracy on them says nothing: take them out of data.labeled or data.test."
        )
    return held_out


def _labeled(data: TrainingData) -> Images | None:
    if data.labeled is not None:
        return data.labeled.images
    return None if data.labels is None else data.images
