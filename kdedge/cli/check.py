"""Check a recipe before a run: classes, images, weights, memory, disk, time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kdedge.cli._options import device_option, runs_option, threads_option
from kdedge.cli._output import json_option, next_line, print_result, same_options, set_option, table
from kdedge.cli._overrides import trained_roles, warn_of_unused_optim
from kdedge.config.load import check_paths, load_recipe
from kdedge.progress import rough_duration
from kdedge.setup.packages import need_training_packages


@click.command("check")
@click.argument("recipe")
@set_option
@runs_option
@device_option
@threads_option
@json_option
def command(
    recipe: str, overrides: tuple[str, ...], root: Path, device: str | None, as_json: bool
) -> None:
    """Check RECIPE before a run: classes, images, weights, memory, disk, time.

    The check reads every image once, loads the weights and times a few steps. Errors have the
    message and exit code that the run would end with. Nothing is written, except that open_clip
    downloads pretrained weights into its cache.
    """
    loaded = load_recipe(recipe, overrides)
    check_paths(loaded)
    need_training_packages("The check of weights and steps")
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.preflight import check

    warn_of_unused_optim(loaded, *trained_roles(loaded))
    found = check(loaded, Workspace(root, choose_device(device), is_read_only=True))
    rows = [[finding.what, finding.found] for finding in found.findings]
    following = "teach" if loaded.recipe.student is None else "distill"
    text = (
        table(rows)
        + f"\nReady: about {rough_duration(found.seconds)} of training, evaluation not counted."
        f"\n{next_line(following, recipe, *same_options(overrides))}"
    )
    print_result(asdict(found), as_json=as_json, text=text)
