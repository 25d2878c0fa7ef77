"""Show what this machine has and what it lacks for each step."""

from __future__ import annotations

import click

from kdedge.api.about import doctor
from kdedge.cli._output import json_option, print_result


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine has and what it lacks for each step.

    Nothing is installed, and the network is not used.
    """
    print_result(doctor(), as_json=as_json)
