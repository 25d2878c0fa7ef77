"""Options and checks that commands share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
    """Checks that the packages of the train extra are installed.

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
