"""Show what this machine has and what it lacks for each step."""

from __future__ import annotations

import click

from kdedge.api.about import doctor
from kdedge.cli.output import json_option, print_result, table_text


@click.command("doctor")
@click.option("--all", "shows_all", is_flag=True, help="List the packages of every extra.")
@json_option
def command(shows_all: bool, as_json: bool) -> None:
    """Show what this machine has and what it lacks for each step.

    It lists the packages of the extras that are installed, wholly or in part. Nothing is installed,
    and the network is not used.
    """
    found = doctor()
    tables = [table_text(table) for table in found.all_tables]
    text = "\n\n".join([*tables, *found.problems]) if shows_all else None
    print_result(found, as_json=as_json, text=text)
