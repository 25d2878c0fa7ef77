"""Options of the commands that train: `--set`'s shorthands, and a check of `--set`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kdedge.cli._output import set_option
from kdedge.config.load import LoadedRecipe
from kdedge.config.suite import override_texts

if TYPE_CHECKING:
    from kdedge.setup.method import Role

_SHORTHANDS: tuple[tuple[str, str, click.ParamType[Any], str], ...] = (
    ("epochs", "{role}.optim.epochs", click.INT, "Passes over the training images"),
    ("batch_size", "{role}.optim.batch_size", click.INT, "Images per step"),
    ("lr", "{role}.optim.lr", click.FLOAT, "Learning rate after warm-up"),
    ("seed", "seed", click.INT, "Seed of all random draws"),
)
"""Option, the recipe's key that it sets, its kind of number, and its help."""


def set_options(role: Role) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--set` and its shorthands, given to the command as the tuple `overrides`.

    Args:
        role: whose `optim` the shorthands set: the model that the command is named after.
    """
    keys = {name: key.format(role=role) for name, key, _, _ in _SHORTHANDS}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*arguments: Any, overrides: tuple[str, ...], **values: Any) -> Any:
            numbers = {name: values.pop(name) for name in keys}
            given = {name: number for name, number in numbers.items() if number is not None}
            known = {text.partition("=")[0] for text in overrides}
            texts = override_texts({keys[name]: number for name, number in given.items()})
            for name, text in zip(given, texts, strict=True):
                if keys[name] in known:
                    raise click.UsageError(
                        f"{_option(name)} and --set {keys[name]}: give one of them."
                    )
                logging.getLogger(__name__).info("%s sets %s.", _option(name), text)
            return function(*arguments, overrides=(*overrides, *texts), **values)

        for name, _, kind, what in reversed(_SHORTHANDS):
            text = f"{what}: short for --set {keys[name]}=N."
            command = click.option(_option(name), metavar="N", type=kind, help=text)(command)
        return set_option(command)

    return decorate


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def trained_roles(loaded: LoadedRecipe) -> list[Role]:
    """The models that `teach` and `distill` train of a recipe."""
    teacher, student = loaded.recipe.teacher, loaded.recipe.student
    roles: list[Role] = ["teacher"] if teacher is not None and teacher.run is None else []
    return roles if student is None else [*roles, "student"]


def warn_of_unused_optim(loaded: LoadedRecipe, *roles: Role) -> None:
    """Warns of each `--set optim.KEY` without effect: all trained models override it.

    Args:
        loaded: the recipe with its overrides.
        roles: the models that the command trains.
    """
    from kdedge.setup.method import choose_method

    overridden = sorted(loaded.lines.overrides)
    keys = [str(path[1]) for path in overridden if len(path) == 2 and path[0] == "optim"]
    # Only where needed: the training command refuses a recipe without the model
    optims = {role: choose_method(loaded, role).optim for role in roles} if keys else {}
    for key in keys:
        asked = getattr(loaded.recipe.optim, key)
        own = {f"{role}.optim.{key}": getattr(optim, key) for role, optim in optims.items()}
        if asked not in own.values():
            others = " --set ".join(override_texts(dict.fromkeys(own, asked)))
            logging.getLogger(__name__).warning(
                "--set %s has no effect, overridden by %s.\n  Set that instead: --set %s",
                *override_texts({f"optim.{key}": asked}),
                " and ".join(override_texts(own)),
                others,
            )
