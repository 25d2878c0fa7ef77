"""Options and checks that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from kdedge.cli.output import json_option
from kdedge.config.load import parse_overrides
from kdedge.config.student_sizes import SIZES
from kdedge.runtime.process import set_up_threads
from kdedge.targets.registry import list_backends, list_targets

# An option that takes a whole number from 1; its help shows the default, if there is one
count_option = partial(click.option, type=click.IntRange(min=1), metavar="N", show_default=True)

# Options that take a path: any, of a file, of a folder
path_option = partial(click.option, type=click.Path(path_type=Path))
file_option = partial(click.option, type=click.Path(path_type=Path, dir_okay=False))
folder_option = partial(
    click.option, type=click.Path(path_type=Path, file_okay=False), show_default=True
)

runs_option = folder_option(
    "--runs",
    "root",
    default=Path("runs"),
    envvar="KDEDGE_RUNS",
    show_envvar=True,
    help="Folder of all runs.",
)

device_option = click.option(
    "--device",
    metavar="NAME",
    help="Device: cpu, cuda or cuda:N. [default: cuda if available, else cpu]",
)

keep_teacher_option = click.option(
    "--keep-teacher",
    is_flag=True,
    help="Use the trained teacher even if zero-shot CLIP or a ridge regression on its backbone is"
    " better on the labeled images.",
)

ray_option = click.option(
    "--ray",
    is_flag=True,
    help="Read and encode the images with the workers of a Ray cluster: that of RAY_ADDRESS, or a"
    " new one on this machine (kdedge[ray]).",
)

resume_option = click.option(
    "--resume", is_flag=True, help="Continue an interrupted run of the same recipe."
)


def _set_threads(ctx: click.Context, _: click.Parameter, n_threads: int | None) -> int | None:
    """Sets the number of threads before torch is loaded."""
    if not ctx.resilient_parsing:
        set_up_threads(n_threads)
    return n_threads


# It takes effect before the command is called, which gets the number, too
threads_option = partial(
    count_option,
    "--threads",
    callback=_set_threads,
    help="Number of CPU threads. [default: OMP_NUM_THREADS, or one per physical core]",
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--runs`, `--device`, `--threads` and `--json` of a command that computes with a run."""
    return runs_option(device_option(threads_option(expose_value=False)(json_option(command))))


def _runnable_precisions() -> list[str]:
    """Precisions of files that kdedge runs."""
    precisions = set[str]()
    for target in list_targets():
        if target.backend is not None:
            precisions.update(target.precisions)
    return sorted(precisions)


_precision_option = click.option(
    "--precision",
    type=click.Choice(_runnable_precisions()),
    help="Precision of the file to use. [default: the file that `kdedge export --cpu` chose on a"
    " machine like this; else fp32, or an engine that this GPU runs. Files that missed their gates"
    " are used only when asked for.]",
)

_backend_option = click.option(
    "--backend", metavar="NAME", help=f"{', '.join(list_backends())}. [default: one that fits]"
)


def artifact_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--precision`, `--backend`, `--threads` and `--runs` of a command that runs an artifact."""
    return _precision_option(_backend_option(threads_option()(runs_option(command))))


set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    callback=lambda ctx, parameter, texts: parse_overrides(texts),
    help="Override a key of the recipe, as in --set student.optim.epochs=10. Can be repeated.",
)

# Options of a training command that are short for keys of the recipe: type and help
SHORTHANDS = {
    "epochs": (int, "Passes over the training images"),
    "batch_size": (int, "Images per step"),
    "lr": (float, "Learning rate after warm-up"),
    "seed": (int, "Seed of all random draws"),
}


def training_options(role: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--set`, `--epochs`, `--batch-size`, `--lr`, `--seed` and `--resume` of a training command.

    Args:
        role: the model that the command trains; the four options set its `optim` and the seed.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = resume_option(command)
        for name, (kind, what) in reversed(SHORTHANDS.items()):
            key = name if name == "seed" else f"{role}.optim.{name}"
            option = f"--{name.replace('_', '-')}"
            text = f"{what}: short for --set {key}=N."
            command = click.option(option, metavar="N", type=kind, help=text)(command)
        return set_option(command)

    return decorate


size_option = click.option(
    "--size",
    type=click.Choice(list(SIZES)),
    help="A student of this size, in place of the recipe's: "
    + "; ".join(
        f"{name} is {s.backbone} ({s.n_parameters:g} million parameters, {s.gflops:g} GFLOPs)"
        for name, s in SIZES.items()
    )
    + ".",
)
