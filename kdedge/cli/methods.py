"""List the methods that a recipe can name."""

from __future__ import annotations

import click

from kdedge.api.about import list_methods
from kdedge.cli.output import json_option, print_result


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the methods that a recipe can name, and what each learns from.

    The list has the methods of kdedge and of installed packages. The columns say what a method is
    trained on. labels: images of data.labeled; a student gets labels through its teacher.
    unlabeled: images of data.unlabeled. novel names: also the names of classes without labels.
    The losses that a student's settings can name follow. `kdedge schema` lists all settings.
    """
    print_result(list_methods(), as_json=as_json)
