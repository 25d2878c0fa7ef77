"""Download the missing files of a benchmark set and unpack them."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli.output import json_option, next_line, print_result
from kdedge.paper.benchmark_sets.api import fetch_set
from kdedge.paper.commands.data.options import data_option


@click.command("fetch")
@click.argument("name")
@data_option
@json_option
def command(name: str, data: Path, as_json: bool) -> None:
    """Download the missing files of a benchmark set and unpack them.

    They come from the Hugging Face Hub; an interrupted download continues where it stopped. If the
    Hub lacks a file, the message has its official address and where to put it.
    """
    fetched = fetch_set(name, data)
    if fetched.new:
        text = f"Wrote {fetched.folder} ({', '.join(fetched.new)})"
    else:
        text = f"{fetched.folder} has all of {name} already."
    if fetched.kept:
        text += f"\nNo longer needed: {', '.join(str(fetched.folder / k) for k in fetched.kept)}"
    text += f"\n{next_line('data', 'verify', name, given=['data'])}"
    print_result(fetched, as_json=as_json, text=text)
