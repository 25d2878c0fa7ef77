"""Write pseudo-labels of a recipe's unlabeled images into a file to read, correct and train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge.cli._options import device_option, need_training_packages, runs_option
from kdedge.cli._output import (
    json_option,
    next_line,
    percent,
    print_result,
    same_options,
    set_option,
)
from kdedge.config.load import LoadedRecipe, check_paths, load_recipe
from kdedge.config.suite import override_texts


@click.command("pseudo-label")
@click.argument("recipe")
@click.option(
    "--method",
    metavar="NAME",
    default="zeroshot",
    show_default=True,
    help="Whose answers: zeroshot, or a method that is trained first where no finished run of it is"
    " there.",
)
@click.option(
    "--per-class",
    metavar="K",
    type=click.IntRange(min=1),
    required=True,
    help="Images of each class: the K with the highest probability of it.",
)
@click.option(
    "-o",
    "--output",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file, JSON lines; one that is there is never overwritten.",
)
@set_option
@runs_option
@device_option
@json_option
def command(
    recipe: str,
    method: str,
    per_class: int,
    path: Path,
    overrides: tuple[str, ...],
    root: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Label unlabeled images of RECIPE by a model on the student's backbone, K of each class.

    RECIPE is a file, or the name of a shipped recipe. An image gets one class: of several that want
    it the one with the highest probability. Each line of the file has an image, its class and the
    model's confidence; correct classes and remove lines as you see fit. Methods that learn from
    labels then train on the file: --set data.pseudo_labels=FILE.

    Settings of the method are the recipe's baseline section where that is of the same method.
    """
    loaded = _load_for(method, recipe, overrides)
    check_paths(loaded)
    need_training_packages("Labeling images")
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.pseudo_labels.pool import label_pool

    workspace = Workspace(root, choose_device(device))
    found = label_pool(loaded, workspace, method, path, per_class=per_class)
    lines = [f"{found.n_images} images of {found.n_classes} classes by {found.method}."]
    if found.accuracy_percent is not None:
        right = percent(found.accuracy_percent)
        lines.append(f"{right} % of the labels are right, by the labels that the images have.")
    lines.append(f"Wrote {path}")
    lines.append(next_line("train", recipe, *_options_of_training(recipe, overrides, path)))
    print_result(found, as_json=as_json, text="\n".join(lines))


def _load_for(method: str, recipe: str, overrides: tuple[str, ...]) -> LoadedRecipe:
    """The recipe, without its baseline section where that is of another method."""
    loaded = load_recipe(recipe, overrides)
    baseline = loaded.recipe.baseline
    if baseline is None or baseline.method in {None, method}:
        return loaded
    return load_recipe(recipe, ("baseline={}", *overrides))


def _options_of_training(recipe: str, overrides: tuple[str, ...], path: Path) -> list[str]:
    """Those of `kdedge train` that train CoOp on a file; settings of its maker are not CoOp's."""
    kept = [text for text in overrides if text.partition("=")[0].split(".")[0] != "baseline"]
    baseline = load_recipe(recipe, kept).recipe.baseline
    room: dict[str, Any] = (
        {} if baseline is None or baseline.method in {None, "coop"} else {"baseline": {}}
    )
    # Behind the others: the last file of pseudo-labels counts
    kept += override_texts({**room, "data.pseudo_labels": str(path)})
    return ["--method", "coop", *same_options(kept)]
