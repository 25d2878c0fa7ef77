"""Checks the sizes in a recipe's settings against its CLIPs, before anything is built."""

from __future__ import annotations

import contextlib
from operator import attrgetter
from pathlib import Path

from kdedge.clip.architecture import EncoderSizes
from kdedge.clip.resolve import named_sizes
from kdedge.config.load import LoadedRecipe
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.records.evaluation import Role
from kdedge.setup.method import choose_method, model_spec
from kdedge.setup.role import backbone_spec


def check_sizes(*models: tuple[LoadedRecipe, Role, EncoderSizes | None]) -> None:
    """Refuses settings that do not fit the CLIPs of a recipe; one error names all settings.

    Args:
        models: a recipe, a role in it, and the sizes of the role's backbone; None to derive them
            from model names and configs, without reading weights.

    Raises:
        RecipeError: a setting asks for more layers or tokens than an encoder has.
    """
    problems: list[str] = []
    for loaded, role, backbone_sizes in models:
        spec = model_spec(loaded.recipe, role)
        sizes = backbone_sizes or EncoderSizes()
        if backbone_sizes is None:
            # A wrong file is reported later, by the code that reads it
            with contextlib.suppress(DataError, SetupError):
                sizes = named_sizes(backbone_spec(spec))
        settings = choose_method(loaded, role).settings
        name = spec.backbone or Path(spec.config or str(spec.weights)).stem
        misfits = [
            (
                setting,
                f"the {encoder} encoder of {name} has {sizes.n_layers[encoder]} layers.\n"
                f"  Set it to {sizes.n_layers[encoder]} or less.",
            )
            for setting, encoders in settings.prompt_depths.items()
            for encoder in encoders
            if attrgetter(setting)(settings) > sizes.n_layers.get(encoder, float("inf"))
        ]
        problems += [
            f"{loaded.lines.where((role, 'settings', *setting.split('.')))}:"
            f" {role}.settings.{setting} is {attrgetter(setting)(settings)}, but {why}"
            for setting, why in [*misfits, *settings.misfits(sizes).items()]
        ]
    if problems:
        raise RecipeError("\n".join(problems))
