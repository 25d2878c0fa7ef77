"""List the prompt methods that a recipe can name."""

from __future__ import annotations

import click

from kdedge.cli._output import first_line, json_option, print_result, table
from kdedge.methods.registry import list_methods, method_files


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the prompt methods that a recipe can name.

    kdedge's own, and those of installed packages. `kdedge schema` lists their settings.
    """
    files = method_files()
    about = {
        name: first_line(files[name]) if name in files else "from an installed package"
        for name in list_methods()
    }
    print_result(about, as_json=as_json, text=table([[name, text] for name, text in about.items()]))
