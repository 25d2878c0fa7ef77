"""Options that commands share, and the setting up that goes with them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kdedge.config.load import LoadedRecipe
from kdedge.config.suite import override_texts
from kdedge.errors import MissingPackage

if TYPE_CHECKING:
    from kdedge.training.parts import Role

_F = TypeVar("_F", bound=Callable[..., Any])


def runs_option(function: _F) -> _F:
    """Adds `--runs DIR`, given to the command as `root`."""
    return click.option(
        "--runs",
        "root",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("runs"),
        envvar="KDEDGE_RUNS",
        show_default=True,
        help="Folder of all runs.",
    )(function)


def device_option(function: _F) -> _F:
    """Adds `--device`, given to the command as `device`: cuda where there is one, else cpu."""
    return click.option(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N. [default: cuda where there is one]"
    )(function)


def resume_option(function: _F) -> _F:
    """Adds `--resume`."""
    return click.option(
        "--resume", is_flag=True, help="Go on with an interrupted run of the same recipe."
    )(function)


def need_training_packages(purpose: str) -> None:
    """Says in one line what is missing where kdedge was installed without the train extra.

    Raises:
        MissingPackage: torch, torchvision or open_clip is not installed.
    """
    for module, package in (
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("open_clip", "open_clip_torch"),
    ):
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(package, extra="train", purpose=purpose)


def warn_of_unused_optim(loaded: LoadedRecipe, *roles: Role) -> None:
    """Names each `--set optim.KEY` that no trained model follows, as all have a value of their own.

    Args:
        loaded: the recipe with its overrides.
        roles: the models that the command trains.
    """
    from kdedge.training.parts import choose_method

    overridden = sorted(loaded.lines.overrides)
    keys = [str(path[1]) for path in overridden if len(path) == 2 and path[0] == "optim"]
    # Without such a key a recipe that lacks a model is refused by what trains it
    optims = {role: choose_method(loaded, role).optim for role in roles} if keys else {}
    for key in keys:
        asked = getattr(loaded.recipe.optim, key)
        own = {f"{role}.optim.{key}": getattr(optim, key) for role, optim in optims.items()}
        if asked not in own.values():
            others = " --set ".join(override_texts(dict.fromkeys(own, asked)))
            logging.getLogger(__name__).warning(
                "--set %s changes nothing, overruled by %s.\n  Set that instead: --set %s",
                *override_texts({f"optim.{key}": asked}),
                " and ".join(override_texts(own)),
                others,
            )
