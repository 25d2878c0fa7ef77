"""Options that set keys of the recipe: `--set`, its shorthands, and `--size`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kdedge.config.load import parse_overrides
from kdedge.config.student_sizes import SIZES

set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    callback=lambda ctx, parameter, texts: parse_overrides(texts),
    help="Override a key of the recipe, as in --set student.optim.epochs=10. Can be repeated.",
)
"""`--set a.b=c`, given to the command as the mapping `overrides`."""

_SHORTHANDS = {
    "epochs": (int, "Passes over the training images"),
    "batch_size": (int, "Images per step"),
    "lr": (float, "Learning rate after warm-up"),
    "seed": (int, "Seed of all random draws"),
}


def training_options(role: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--set`, `--epochs`, `--batch-size`, `--lr` and `--seed`, as the calls that train take them.

    Args:
        role: the model that the command trains; the short options set its `optim`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, (kind, what) in reversed(_SHORTHANDS.items()):
            key = name if name == "seed" else f"{role}.optim.{name}"
            option, text = f"--{name.replace('_', '-')}", f"{what}: short for --set {key}=N."
            command = click.option(option, metavar="N", type=kind, help=text)(command)
        return set_option(command)

    return decorate


SIZE_HELP = (
    "Student by size, in place of the recipe's: "
    + "; ".join(
        f"{name} is {one.backbone} ({one.n_parameters:g} million parameters, {one.gflops:g} GFLOPs)"
        for name, one in SIZES.items()
    )
    + "."
)

size_option = click.option("--size", type=click.Choice(list(SIZES)), help=SIZE_HELP)
"""`--size`, given to the command as `size`."""
