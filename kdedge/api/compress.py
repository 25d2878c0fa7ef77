"""What a call or a command that compresses a finished student adds to its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from kdedge.api.recipe import AnyRecipe
from kdedge.config.load import load_recipe
from kdedge.config.suite import override_texts
from kdedge.errors import RecipeError
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder

OPTIM: dict[str, Any] = {
    "algorithm": "adamw",
    "lr": 1e-4,
    "weight_decay": 0.0,
    "epochs": 2,
    "warmup_epochs": 0,
    "schedule": "cosine",
    "schedule_per": "step",
    "layer_decay": None,
}
"""How a compressed student is trained, if nothing else is said: all of its weights are, and the
recipe's settings may be those of prompts. Our choice; on photos100 it was the only one tried."""


class FromRun(NamedTuple):
    """A recipe that compresses a finished student.

    Attributes:
        recipe: the given one, or the run's own.
        texts: overrides in the form of `--set`; those of the call come after them.
    """

    recipe: AnyRecipe
    texts: list[str]


def from_run(
    recipe: AnyRecipe | None, resume_from: str | Path | None, root: Path, **how: str | None
) -> FromRun:
    """The recipe of a call that may compress a finished student.

    Args:
        recipe: None for that of the run.
        resume_from: the run's folder, `name/NN`, or a recipe's name; None for a plain student.
        root: folder of all runs.
        how: `quantize` and `sparsity`; None leaves it to the recipe.

    Raises:
        RecipeError: no such run, or neither recipe nor run.
    """
    keys = {f"student.{key}": value for key, value in how.items() if value is not None}
    if resume_from is None:
        if recipe is None:
            raise RecipeError(
                "There is no recipe.\n  Name one, or a finished student to compress with"
                " --resume-from RUN."
            )
        return FromRun(recipe, override_texts(keys))
    run = find_run(str(resume_from), root, prefer="student")
    keys["student.resume_from"] = str(run.path.absolute())
    if recipe is None:
        recipe = run.recipe
        teacher = _teacher(run)
        if teacher is not None:
            keys["teacher.run"] = str(teacher.absolute())
    optim = {f"student.optim.{key}": value for key, value in OPTIM.items()}
    return FromRun(recipe, override_texts({**keys, **optim}))


def _teacher(run: RunFolder) -> Path | None:
    """The folder of a run's only teacher, if its recipe does not name it; None if it is missing."""
    name, spec = run.read_provenance().teacher_run, load_recipe(run.recipe).recipe.teacher
    if name is None or spec is None or spec.run is not None:
        return None
    folder = run.root / name
    return folder if (folder / "provenance.json").is_file() else None
