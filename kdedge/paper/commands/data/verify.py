"""Compare a benchmark set's counts, class names and split with the published ones."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from kdedge.cli.output import given_options, json_option, print_result
from kdedge.errors import DataError
from kdedge.paper.benchmark_sets.api import open_set, verify_set
from kdedge.paper.commands.data.options import data_option


@click.command("verify")
@click.argument("name")
@click.option("--images", "read_images", is_flag=True, help="Also decode every image.")
@data_option
@json_option
def command(name: str, read_images: bool, data: Path, as_json: bool) -> None:
    """Compare a benchmark set's counts, class names and split with the published ones."""
    verification = verify_set(name, data, read_images=read_images)
    print_result(verification, as_json=as_json)
    if verification.problems:
        remedy = "Fetch what is missing"
        if not open_set(name, data).missing:
            remedy = (
                "A fetch only adds files and folders that are missing altogether.\n"
                "  Move the files that differ away, and run"
            )
        count = len(verification.problems)
        raise DataError(
            f"{verification.folder} differs from the published {name}: {count} difference"
            f"{'s' if count > 1 else ''}.\n  {remedy}: "
            + shlex.join(["kdedge", "data", "fetch", name, *given_options("data")])
        )
