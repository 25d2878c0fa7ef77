"""Resolves the method of a role: its module, its settings and its optimization."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from kdedge.config.explain import explain_validation
from kdedge.config.load import LoadedRecipe, override_texts
from kdedge.config.optim_spec import OptimSettings, resolve_optim
from kdedge.config.recipe import ModelSpec, Recipe
from kdedge.config.yaml_file import dotted
from kdedge.errors import RecipeError
from kdedge.methods.base import ClosedFormMethod, MethodSettings
from kdedge.methods.registry import DataNeeds, Declaration, load_method
from kdedge.records.evaluation import Role

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MethodChoice:
    """The method that a recipe chooses for a role; no class list or weights are read for it.

    Attributes:
        role: teacher, student or baseline.
        method_name: the method's name, such as `promptsrc`.
        module: the method's file.
        settings: the method's settings.
        optim: the settings of its optimization.
    """

    role: Role
    method_name: str
    module: ModuleType
    settings: MethodSettings
    optim: OptimSettings

    @property
    def is_closed_form(self) -> bool:
        """Whether the method is solved in closed form and not trained by gradients."""
        method = self.module.Method  # a function, if its class depends on the settings
        return isinstance(method, type) and issubclass(method, ClosedFormMethod)

    @property
    def trains_by_gradient(self) -> bool:
        """Whether it is trained by gradients: not in closed form, and on some data."""
        return not self.is_closed_form and self.data_needs != DataNeeds()

    @property
    def untrained_reason(self) -> str:
        """Why a method does not train by gradients, as the end of a sentence."""
        return "is solved in one pass" if self.is_closed_form else "has nothing to train"

    @property
    def used_optim(self) -> OptimSettings:
        """The settings that have an effect on the method; the others have their defaults."""
        if self.trains_by_gradient:
            return self.optim
        used = {"precision", "n_workers", "selection"} if self.is_closed_form else {"selection"}
        return OptimSettings(**self.optim.model_dump(include=used))

    @property
    def data_needs(self) -> DataNeeds:
        """The data that the method learns from with these settings."""
        method: Declaration = self.module.METHOD
        declared = method.student_data_needs if self.role == "student" else method.data_needs
        return (declared or DataNeeds()) | DataNeeds(labels=self.settings.learns_from_labels)


def model_spec(recipe: Recipe, role: Role) -> ModelSpec:
    """The recipe's section for a role; a baseline gets the student's backbone.

    Raises:
        RecipeError: the recipe has no such section.
    """
    teacher = recipe.teacher
    if role == "teacher" and teacher is not None and not teacher.is_trained:
        what = "run" if teacher.file is None else "file"
        raise RecipeError(
            f"The teacher of {recipe.name} is a {what}: there is nothing to train.\n"
            "  Run: kdedge distill"
        )
    spec = recipe.needed_teacher() if role == "teacher" else recipe.needed_student()
    if role == "baseline":
        baseline = recipe.baseline
        assert baseline is not None  # `with_baseline` has filled it in
        keys = {"method": baseline.method, "settings": baseline.settings, "optim": baseline.optim}
        return spec.model_copy(update=keys)
    return spec


def choose_method(loaded: LoadedRecipe, role: Role) -> MethodChoice:
    """Loads the method of a role and checks its settings; errors name the recipe's lines.

    Raises:
        RecipeError: there is no such method, a setting is wrong, or the recipe has pseudo-labels
            for a method that makes its own.
    """
    spec = model_spec(loaded.recipe, role)
    try:
        module = load_method(spec.method)
    except RecipeError as error:
        key = (role, "method")
        lines = loaded.lines
        if key not in lines.lines or lines.override(key):  # --method, a suite
            raise
        raise RecipeError(f"{lines.where(key)}: {error}") from None
    try:
        settings = module.Settings(**spec.settings)
    except ValidationError as error:
        raise explain_validation(
            error, model=module.Settings, lines=loaded.lines, prefix=(role, "settings")
        ) from error
    if settings.makes_pseudo_labels and loaded.recipe.data.pseudo_labels is not None:
        raise _no_use_of_pseudo_labels(f"{spec.method} makes its own pseudo-labels")
    optim = resolve_optim(loaded.recipe.optim, spec.optim)
    return MethodChoice(role, spec.method, module, settings, optim)


def check_reads_pseudo_labels(choice: MethodChoice, recipe: Recipe) -> None:
    """Refuses a file of pseudo-labels with a method that uses no labels.

    Raises:
        RecipeError: the method would ignore the file.
    """
    needs = choice.data_needs
    if recipe.data.pseudo_labels is not None and needs.unlabeled_images and not needs.labels:
        raise _no_use_of_pseudo_labels(f"{choice.method_name} uses no labels")


def _no_use_of_pseudo_labels(why: str) -> RecipeError:
    return RecipeError(
        f"{why}, but the recipe has data.pseudo_labels.\n"
        "  Remove that key, or choose a method that learns from labels, such as promptsrc."
    )


def settings_record(choice: MethodChoice) -> dict[str, Any]:
    """The method's name and settings as JSON values, for hashes and provenance."""
    return {"method": choice.method_name, "settings": choice.settings.model_dump(mode="json")}


def check_has_class_vectors(choice: MethodChoice, use: str) -> None:
    """Refuses a method without class vectors.

    Args:
        choice: the method.
        use: the purpose, for the message, such as `be exported`.

    Raises:
        RecipeError: the method has no class vectors.
    """
    if choice.settings.classifier == "own_logits":
        raise RecipeError(
            f"{choice.method_name} computes its logits without class vectors, so it cannot {use}.\n"
            "  Choose another method, such as promptsrc. To compare with this one, run"
            f" `kdedge train RECIPE --method {choice.method_name}`,"
            f" and for its speed `kdedge bench RUN --against {choice.method_name}`."
        )


def check_can_be_teacher(choice: MethodChoice) -> None:
    """Refuses a method that cannot be trained as a teacher.

    Raises:
        RecipeError: the method learns from a teacher, or has no class vectors.
    """
    if choice.module.METHOD.needs_teacher:
        raise RecipeError(
            f"{choice.method_name} needs a teacher itself, so it cannot be one.\n"
            "  Choose another teacher.method, such as promptsrc or zeroshot."
        )
    check_has_class_vectors(choice, "teach a student")


def check_needs_no_vectors(student: MethodChoice, teacher: str) -> None:
    """Refuses a student that needs class vectors of its teacher, for a teacher that has none.

    Args:
        student: the student's method.
        teacher: the teacher and the reason why it has none, in words.

    Raises:
        RecipeError: the student needs class vectors.
    """
    if student.settings.classifier == "teacher_vectors":
        raise RecipeError(
            f"The teacher, {teacher}, has no class vectors, which {student.method_name} would"
            " compare images with.\n"
            "  Set student.settings.class_vectors: student (of ridge, outputs: logits), or choose a"
            " teacher with class vectors, such as promptsrc or zeroshot."
        )


def trained_roles(loaded: LoadedRecipe) -> list[Role]:
    """The models of a recipe that teaching and distillation train."""
    teacher = loaded.recipe.teacher
    roles: list[Role] = ["teacher"] if teacher is not None and teacher.is_trained else []
    return roles if loaded.recipe.student is None else [*roles, "student"]


def recipe_uses_labels(loaded: LoadedRecipe) -> bool:
    """Whether a model of `trained_roles` learns from labels."""
    return any(choose_method(loaded, role).data_needs.labels for role in trained_roles(loaded))


def warn_of_unused_optim(loaded: LoadedRecipe, *roles: Role) -> None:
    """Warns about each override of `optim` or `ROLE.optim` that no trained model follows.

    Args:
        loaded: the recipe with its overrides.
        roles: the models that are trained.
    """
    overridden = [path for path in sorted(loaded.lines.overrides) if path[-2:-1] == ("optim",)]
    # Methods are chosen only if needed, since that refuses a recipe without the model
    choices = [choose_method(loaded, role) for role in roles] if overridden else []
    for path in overridden:
        key = str(path[-1])
        models = [choice for choice in choices if path[0] in ("optim", choice.role)]
        used = [choice for choice in models if key in choice.used_optim.model_fields_set]
        chosen = {f"{model.role}.optim.{key}": getattr(model.optim, key) for model in used}
        shared = getattr(loaded.recipe.optim, key)
        if models and not used:
            reasons = {f"{model.method_name} {model.untrained_reason}" for model in models}
            log.warning(f"{dotted(path)} has no effect: {' and '.join(sorted(reasons))}.")
        elif len(path) == 2 and used and shared not in chosen.values():
            (given,) = override_texts({f"optim.{key}": shared})
            others = " and ".join(override_texts(dict.fromkeys(chosen, shared)))
            log.warning(
                f"{given} has no effect, overridden by {' and '.join(override_texts(chosen))}.\n"
                f"  Set that instead: {others}"
            )
