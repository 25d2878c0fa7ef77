"""Opening the several teachers of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.config.recipe import EnsembleSpec
from kdedge.data.images import spread
from kdedge.setup.data import RecipeData
from kdedge.setup.images import Images
from kdedge.setup.method import check_has_class_vectors
from kdedge.setup.role import RoleSetup
from kdedge.setup.teachers import probabilities_of
from kdedge.training.teachers.ensemble import Ensemble
from kdedge.training.teachers.file import FileTeacher
from kdedge.training.teachers.known import KnownTeacher
from kdedge.training.teachers.model import ModelTeacher

_N_FIT = 500
"""Images that the temperatures are fitted on, at most: the mean of a probability needs no more."""


def open_ensemble(
    known: Sequence[KnownTeacher], setup: RoleSetup, unlabeled: Images, test: Images | None
) -> Ensemble:
    """Puts a recipe's teachers together.

    Temperatures are fitted on labeled images that the recipe names, if every teacher has an answer
    for them, else on unlabeled ones. No label is read for it.

    Args:
        known: the teachers that are models, in the recipe's order.
        setup: the student's.
        unlabeled: that are trained on.
        test: what is measured on, if anything.

    Raises:
        RecipeError: the first teacher has no class vectors, or another one has neither these nor a
            classifier.
        DataError: a file of probabilities is wrong.
    """
    check_has_class_vectors(known[0].model.setup.choice)
    recipe = setup.loaded.recipe
    data = RecipeData(recipe, setup.classes, setup.workspace)
    held_out = data.held_out()
    pool = unlabeled.only(
        sorted({*unlabeled.indices, *(() if held_out is None else held_out.indices)})
    )
    models = iter([ModelTeacher(one) for one in known])
    files = probabilities_of(setup.loaded)
    first, *others = (
        FileTeacher(files[number], setup.classes, pool, test) if number in files else next(models)
        for number in range(len(recipe.teacher_specs))
    )
    assert isinstance(first, ModelTeacher)  # the schema refuses a file
    fit_on = unlabeled
    if recipe.data.labeled is not None:
        labeled = data.labeled("teacher")
        if all(teacher.can_answer(labeled) for teacher in others):
            fit_on = labeled
    fit_on = fit_on.only([fit_on.indices[i] for i in spread(len(fit_on.indices), _N_FIT)])
    return Ensemble(first, others, recipe.ensemble or EnsembleSpec(), fit_on=fit_on)
