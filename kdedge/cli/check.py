"""Check a recipe before a run: classes, images, weights, memory, disk, time."""

from __future__ import annotations

from typing import Any

import click

from kdedge.api.check import check
from kdedge.cli.options import run_options, set_option, size_option
from kdedge.cli.output import next_line, print_result, table_text


@click.command("check")
@click.argument("recipe")
@size_option
@set_option
@run_options
def command(recipe: str, overrides: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Check RECIPE before a run: classes, images, weights, memory, disk, time.

    It reads every image once, loads the weights and times a few steps. Errors have the message and
    exit code that the run would end with. Nothing is written, except that open_clip downloads
    pretrained weights into its cache.
    """
    preflight = check(recipe, overrides=overrides, **options)
    has_student = any(finding.what.startswith("student") for finding in preflight.findings)
    name = "distill" if has_student else "teach"
    given = ("size", "root", "device")
    following = next_line(name, recipe, overrides=overrides, given=given)
    text = "\n".join([table_text(preflight.table), *preflight.notes, following])
    print_result(preflight, as_json=as_json, text=text)
