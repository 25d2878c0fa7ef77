"""Checks the sizes in a recipe's settings against its CLIPs, before anything is built."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from kdedge.clip.find import FoundBackbone
from kdedge.clip.resolve import count_layers
from kdedge.config.load import LoadedRecipe
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.setup.method import MethodChoice, Role, choose_method, model_spec
from kdedge.setup.role import RoleSetup, backbone_spec


def size_problems(
    loaded: LoadedRecipe, role: Role, choice: MethodChoice, n_layers: Mapping[str, int], name: str
) -> list[str]:
    """Messages for the settings that ask for more layers than an encoder has.

    Args:
        loaded: the recipe.
        role: whose settings.
        choice: the method with its settings.
        n_layers: encoder -> layers, as far as known.
        name: name of the backbone.
    """
    return [
        f"{loaded.lines.where((role, 'settings', setting))}: {role}.settings.{setting} is"
        f" {getattr(choice.settings, setting)}, but the {encoder} encoder of {name} has"
        f" {n_layers[encoder]} layers.\n  Set it to {n_layers[encoder]} or less."
        for setting, encoders in choice.settings.prompt_depths.items()
        for encoder in encoders
        if getattr(choice.settings, setting) > n_layers.get(encoder, float("inf"))
    ]


def larger_teacher(size_px: int, student: FoundBackbone) -> str:
    """The message for a teacher that needs larger images than its student."""
    return (
        f"The teacher takes images of {size_px} pixels, and student {student.name} of"
        f" {student.preprocess.size_px}.\n"
        "  Both get the same crop: choose a teacher with the student's image size or less."
    )


def check_sizes(*setups: RoleSetup) -> None:
    """Refuses settings that do not fit the CLIPs of a recipe; one error names them all.

    Args:
        setups: the models that are built together.

    Raises:
        RecipeError: a setting asks for more layers than there are, or the teacher takes larger
            images than the student.
    """
    problems = [
        problem
        for setup in setups
        for problem in size_problems(
            setup.loaded, setup.role, setup.choice, setup.backbone.n_layers, setup.backbone.name
        )
    ]
    for student in (setup.backbone for setup in setups if setup.role == "student"):
        sizes = [one.backbone.preprocess.size_px for one in setups if one.role == "teacher"]
        if max(sizes, default=0) > student.preprocess.size_px:
            problems.append(larger_teacher(max(sizes), student))
    if problems:
        raise RecipeError("\n".join(problems))


def check_named_sizes(*models: tuple[LoadedRecipe, Role]) -> None:
    """Does the same without reading weights, from model names and configs only.

    Args:
        models: a recipe, and the role in it.

    Raises:
        RecipeError: a setting asks for more layers than there are.
    """
    problems = []
    for loaded, role in models:
        spec, choice = model_spec(loaded.recipe, role), choose_method(loaded, role)
        if choice.settings.prompt_depths:
            name = spec.backbone or (spec.config.name if spec.config else str(spec.weights))
            n_layers: Mapping[str, int] = {}
            with contextlib.suppress(
                DataError, SetupError
            ):  # a wrong file is reported where it is read
                n_layers = count_layers(backbone_spec(spec))
            problems += size_problems(loaded, role, choice, n_layers, name)
    if problems:
        raise RecipeError("\n".join(problems))
