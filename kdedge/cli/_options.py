"""Options that commands share, and the setting up that goes with them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kdedge.errors import MissingPackage

_F = TypeVar("_F", bound=Callable[..., Any])


def options_as(kind: type[Any], name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hands the options that a dataclass's fields name to the command as one value of it.

    It stands below the options' own decorators.

    Args:
        kind: the dataclass.
        name: of the command's parameter.
    """
    fields = [field.name for field in dataclasses.fields(kind)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*arguments: Any, **values: Any) -> Any:
            values[name] = kind(**{field: values.pop(field) for field in fields})
            return function(*arguments, **values)

        return command

    return decorate


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


def check_new_file(path: Path | None) -> None:
    """Refuses a file for a result that could not be written in the end; None is no file.

    Raises:
        UsageError: it exists, or its folder does not.
    """
    if path is None:
        return
    if path.exists():
        raise click.UsageError(f"{path} exists, and nothing is overwritten. Name another file.")
    if not path.parent.is_dir():
        raise click.UsageError(f"{path} cannot be written: there is no folder {path.parent}.")


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
