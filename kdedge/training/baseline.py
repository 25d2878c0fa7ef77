"""Trains a baseline: any prompt method on the student's backbone, from the labeled images."""

from __future__ import annotations

from dataclasses import replace

from kdedge.config.load import LoadedRecipe
from kdedge.config.optim_spec import OptimSpec, resolve_optim
from kdedge.config.recipe import BaselineSpec
from kdedge.errors import RecipeError
from kdedge.methods.registry import load_method
from kdedge.runs.folder import RunFolder
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.training.job import Job
from kdedge.training.run_job import run_job
from kdedge.training.teach import job_on_training_images


def with_baseline(loaded: LoadedRecipe, method: str | None = None) -> LoadedRecipe:
    """Fills in the recipe's baseline section, so that the recipe alone reproduces the run.

    If a teacher uses the same method, the baseline takes that teacher's settings and `optim`.
    Otherwise it takes the method's default settings and the recipe's shared `optim`, in which the
    method's own `optim` values take precedence. The recipe's baseline section overrides both.

    Args:
        loaded: the recipe; its baseline section may be incomplete.
        method: the baseline's method; None for the one that the recipe names.

    Raises:
        RecipeError: no method is named, two different ones are named, the method does not exist,
            or it learns from a teacher.
    """
    recipe = loaded.recipe
    section = recipe.baseline or BaselineSpec()
    name = _method_name(loaded, method, section.method)
    module = load_method(name)
    if module.METHOD.needs_teacher:
        raise RecipeError(
            f"{name} learns from a teacher, but a baseline has no teacher.\n"
            f"  Set student.method: {name} and run `kdedge distill`."
        )
    settings, optim = {}, module.METHOD.optim
    teacher = recipe.teacher
    if teacher is not None and teacher.is_trained and teacher.method == name:
        settings, optim = teacher.settings, teacher.optim
    spec = BaselineSpec(
        method=name,
        settings={**settings, **section.settings},
        optim=OptimSpec(**resolve_optim(recipe.optim, optim, section.optim).model_dump()),
    )
    return replace(loaded, recipe=recipe.model_copy(update={"baseline": spec}))


def _method_name(loaded: LoadedRecipe, asked: str | None, written: str | None) -> str:
    if asked is not None and written is not None and asked != written:
        raise RecipeError(
            f"{loaded.lines.where(('baseline', 'method'))}: baseline.method is {written}, but"
            f" --method is {asked}.\n"
            "  Leave --method out, or replace the section with --set"
            f" 'baseline={{method: {asked}}}'"
        )
    name = asked or written
    if name is None:
        raise RecipeError(
            f"The recipe {loaded.recipe.name} has no baseline.\n"
            "  Choose its method with --method or baseline.method; `kdedge methods` lists them."
        )
    return name


def baseline_job(loaded: LoadedRecipe, workspace: Workspace, method: str | None = None) -> Job:
    """The job that trains a baseline: see `with_baseline`."""
    return job_on_training_images(set_up_role(with_baseline(loaded, method), "baseline", workspace))


def train_baseline(
    loaded: LoadedRecipe, workspace: Workspace, method: str | None = None, *, resume: bool = False
) -> RunFolder:
    """Trains a baseline and evaluates it.

    Args:
        loaded: the recipe.
        workspace: where the command works.
        method: the baseline's method; None for the one that the recipe names.
        resume: continue an interrupted run of the same baseline.
    """
    return run_job(baseline_job(loaded, workspace, method), resume=resume)
