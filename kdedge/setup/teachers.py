"""The teachers of a recipe, each as a recipe with that teacher alone."""

from __future__ import annotations

from dataclasses import replace

from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import ListedTeacherSpec, ProbabilitiesSpec
from kdedge.config.yaml_file import LineMap


def teacher_recipes(loaded: LoadedRecipe) -> list[LoadedRecipe]:
    """Gives a recipe for each teacher that is a model, in their order.

    Each has that teacher as its `teacher`, and the lines of its keys. Files of probabilities are
    left out. A recipe with a single `teacher` is given as it is.
    """
    listed = loaded.recipe.teachers
    if listed is None:
        return [] if loaded.recipe.teacher is None else [loaded]
    return [
        replace(
            loaded,
            recipe=loaded.recipe.model_copy(
                update={"teacher": spec, "teachers": None, "ensemble": None}
            ),
            lines=_lines_of(loaded.lines, number),
        )
        for number, spec in enumerate(listed)
        if spec.probabilities is None
    ]


def names_teacher_run(loaded: LoadedRecipe) -> bool:
    """Whether a recipe's single teacher is a finished run, and not one that is to be trained."""
    spec = loaded.recipe.teacher
    return spec is not None and spec.run is not None


def probabilities_of(loaded: LoadedRecipe) -> dict[int, ProbabilitiesSpec]:
    """Gives the teachers that are files of probabilities: number in the list, from 0 -> files."""
    return {
        number: spec.probabilities
        for number, spec in enumerate(loaded.recipe.teacher_specs)
        if isinstance(spec, ListedTeacherSpec) and spec.probabilities is not None
    }


def _lines_of(lines: LineMap, number: int) -> LineMap:
    """A line map that has the keys of one of the listed teachers as those of `teacher`."""
    place = ("teachers", number)
    own = {("teacher", *key[2:]): line for key, line in lines.lines.items() if key[:2] == place}
    overrides = lines.overrides
    if ("teachers",) in overrides:
        overrides = overrides | {("teacher",)}
    return replace(lines, lines={**lines.lines, **own}, overrides=overrides)
