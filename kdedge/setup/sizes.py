"""Checks the sizes in a recipe's settings against its CLIPs, before anything is built."""

from __future__ import annotations

import contextlib
from operator import attrgetter

from kdedge.clip.architecture import EncoderSizes
from kdedge.clip.resolve import named_sizes
from kdedge.config.load import LoadedRecipe
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.records.evaluation import Role
from kdedge.setup.method import MethodChoice, choose_method, model_spec
from kdedge.setup.role import RoleSetup, backbone_spec


def size_problems(
    loaded: LoadedRecipe, role: Role, choice: MethodChoice, sizes: EncoderSizes, name: str
) -> list[str]:
    """Messages for the settings that ask for more layers or tokens than an encoder has.

    Args:
        loaded: the recipe.
        role: whose settings.
        choice: the method with its settings.
        sizes: of the backbone, as far as known.
        name: name of the backbone.
    """
    settings, n_layers = choice.settings, sizes.n_layers
    misfits = [
        (
            setting,
            f"the {encoder} encoder of {name} has {n_layers[encoder]} layers.\n"
            f"  Set it to {n_layers[encoder]} or less.",
        )
        for setting, encoders in settings.prompt_depths.items()
        for encoder in encoders
        if attrgetter(setting)(settings) > n_layers.get(encoder, float("inf"))
    ]
    return [
        f"{loaded.lines.where((role, 'settings', *setting.split('.')))}: {role}.settings.{setting}"
        f" is {attrgetter(setting)(settings)}, but {why}"
        for setting, why in [*misfits, *settings.misfits(sizes).items()]
    ]


def check_sizes(*setups: RoleSetup) -> None:
    """Refuses settings that do not fit the CLIPs of a recipe; one error names them all.

    Args:
        setups: the models that are built together.

    Raises:
        RecipeError: a setting asks for more layers than there are.
    """
    problems: list[str] = []
    for setup in setups:
        backbone = setup.backbone
        problems += size_problems(
            setup.loaded, setup.role, setup.choice, backbone.sizes, backbone.name
        )
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
        name = spec.backbone or (spec.config.name if spec.config else str(spec.weights))
        sizes = EncoderSizes()
        with contextlib.suppress(
            DataError, SetupError
        ):  # a wrong file is reported where it is read
            sizes = named_sizes(backbone_spec(spec))
        problems += size_problems(loaded, role, choice, sizes, name)
    if problems:
        raise RecipeError("\n".join(problems))
