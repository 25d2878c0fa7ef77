"""The finished run whose student is compressed: opened, and compared with the recipe."""

from __future__ import annotations

from kdedge.errors import RecipeError
from kdedge.runs.find import find_run
from kdedge.runs.model import RunModel, load_run
from kdedge.setup.method import settings_record
from kdedge.setup.role import RoleSetup
from kdedge.training.job.job import Teaching


def start_of(setup: RoleSetup) -> RunModel | None:
    """Opens the run that a recipe's `student.resume_from` names; None for a plain student.

    Raises:
        RecipeError: it is not a finished run of this recipe's student.
    """
    spec = setup.loaded.recipe.student
    if spec is None or spec.resume_from is None:
        return None
    run = find_run(str(spec.resume_from), setup.workspace.root)
    if run.kind != "student" or not run.is_finished:
        raise _unfit(setup, "is not a finished run of a student")
    start = load_run(run, setup.workspace)
    differing = [
        what
        for what, is_equal in {
            "backbone": start.setup.backbone.identity == setup.backbone.identity,
            "method or settings": settings_record(start.setup.choice)
            == settings_record(setup.choice),
            "class list": start.class_names == setup.classes.names,
        }.items()
        if not is_equal
    ]
    if differing:
        raise _unfit(setup, f"has another {' and another '.join(differing)}")
    return start


def check_same_teacher(start: RunModel, setup: RoleSetup, teaching: Teaching) -> None:
    """Checks that a student goes on with the class vectors that it was trained with.

    Raises:
        RecipeError: it learned from another teacher.
    """
    taught_by = start.run.read_provenance().hashes.get("teacher")
    if teaching.run is not None and taught_by != teaching.provenance:
        raise _unfit(setup, "learned from another teacher")


def _unfit(setup: RoleSetup, why: str) -> RecipeError:
    spec = setup.loaded.recipe.student
    assert spec is not None
    return RecipeError(
        f"{setup.loaded.lines.where(('student', 'resume_from'))}: student.resume_from:"
        f" {spec.resume_from} {why}.\n"
        "  Name a finished run of this recipe's student, or leave the recipe out and give that run"
        " alone: kdedge distill --resume-from RUN"
    )
