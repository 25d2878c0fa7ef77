"""Options and checks that commands share."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kdedge.errors import MissingPackage

runs_option = click.option(
    "--runs",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    envvar="KDEDGE_RUNS",
    show_default=True,
    help="Folder of all runs.",
)
"""`--runs DIR`, given to the command as `root`."""

device_option = click.option(
    "--device",
    metavar="NAME",
    help="Device: cpu, cuda or cuda:N. [default: cuda if available, else cpu]",
)
"""`--device`, given to the command as `device`; None is cuda if available, else cpu."""

resume_option = click.option(
    "--resume", is_flag=True, help="Continue an interrupted run of the same recipe."
)
"""`--resume`, given to the command as `resume`."""


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


def check_new_file(path: Path | None) -> None:
    """Checks that a result can be written to a file; None is no file.

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
    """Checks that the packages of the train extra are installed; says that PyTorch is loaded next.

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
    # It takes seconds, on a slow disk a minute; of several processes the first says it
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__).info("Loading PyTorch.")
