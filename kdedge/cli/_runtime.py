"""Options of commands that run an artifact's file: its precision and its backend."""

from __future__ import annotations

import click

from kdedge.targets.registry import list_backends, list_targets


def _precisions() -> list[str]:
    """The precisions that a backend runs."""
    targets = [target for target in list_targets() if target.backend is not None]
    return sorted({precision for target in targets for precision in target.precisions})


def _backend_names() -> str:
    *names, last = list_backends()
    return f"{', '.join(names)} or {last}"


precision_option = click.option(
    "--precision",
    type=click.Choice(_precisions()),
    help="Precision of the file to use. [default: the file that `kdedge export --cpu` chose on a"
    " machine like this; else fp32, or an engine that this GPU runs. Files that missed their gates"
    " are used only when asked for.]",
)
"""`--precision`, given to the command as `precision`."""

backend_option = click.option(
    "--backend",
    metavar="NAME",
    help=f"{_backend_names()}. [default: one that fits]",
)
"""`--backend NAME`, given to the command as `backend`."""
