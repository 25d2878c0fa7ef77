"""Train the recipe's teacher on labeled images and store its class vectors."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli._options import device_option, need_training_packages, resume_option, runs_option
from kdedge.cli._output import json_option, next_line, print_result, same_options, set_option
from kdedge.cli._results import finished_runs, run_record, run_text
from kdedge.config.load import check_paths, load_recipe


@click.command("teach")
@click.argument("recipe")
@set_option
@resume_option
@runs_option
@device_option
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    resume: bool,
    root: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Train the teacher of RECIPE on its labeled images and store its class vectors.

    RECIPE is a file, or the name of a shipped recipe.
    """
    loaded = load_recipe(recipe, overrides)
    check_paths(loaded)
    need_training_packages("Training")
    from kdedge.training.parts import choose_device
    from kdedge.training.teach import teach

    used = finished_runs(root)
    run = teach(loaded, root=root, device=choose_device(device), resume=resume)
    following = (
        next_line("eval", run.path)
        if loaded.recipe.student is None
        else next_line("distill", recipe, *same_options(overrides))
    )
    text = f"{run_text([run], used=used)}\n{following}"
    print_result({"teacher": run_record(run)}, as_json=as_json, text=text)
