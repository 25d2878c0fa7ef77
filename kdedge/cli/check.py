"""Check a recipe before a run: classes, images, weights, memory, disk, time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kdedge.api.check import check_loaded
from kdedge.cli._options import device_option, runs_option, threads_option
from kdedge.cli._output import json_option, next_line, print_result, same_options, set_option, table
from kdedge.cli._overrides import size_option
from kdedge.config.load import load_recipe


@click.command("check")
@click.argument("recipe")
@size_option
@set_option
@runs_option
@device_option
@threads_option
@json_option
def command(
    recipe: str, overrides: tuple[str, ...], root: Path, device: str | None, as_json: bool
) -> None:
    """Check RECIPE before a run: classes, images, weights, memory, disk, time.

    It reads every image once, loads the weights and times a few steps. Errors have the message and
    exit code that the run would end with. Nothing is written, except that open_clip downloads
    pretrained weights into its cache.
    """
    loaded = load_recipe(recipe, overrides)
    found = check_loaded(loaded, root, device)
    rows = [[finding.what, finding.found] for finding in found.findings]
    following = "teach" if loaded.recipe.student is None else "distill"
    following = next_line(following, recipe, *same_options(overrides))
    text = f"{table(rows)}\n{found.estimate}\n{following}"
    print_result(asdict(found), as_json=as_json, text=text)
