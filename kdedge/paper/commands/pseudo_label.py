"""Write pseudo-labels of unlabeled images to a file that you can correct and train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge.cli.options import count_option, file_option, ray_option, run_options, set_option
from kdedge.cli.output import next_line, print_result
from kdedge.config.load import load_recipe, merged
from kdedge.paper.pseudo_labels.api import pseudo_label
from kdedge.records.tables import decimals


@click.command("pseudo-label")
@click.argument("recipe")
@click.option(
    "--method",
    metavar="NAME",
    help="Model that labels the images: teacher, the recipe's; zeroshot; or a method. Teacher and"
    " method are trained first unless a finished run exists. As distill does,"
    " zero-shot CLIP or ridge replaces a trained teacher if it is better on its labeled images."
    " [default: teacher if the recipe has one and what it learns from, else zeroshot]",
)
@count_option(
    "--per-class",
    metavar="K",
    required=True,
    help="Images per class: the K with the highest probability of the class.",
)
@file_option(
    "-o",
    "--output",
    "path",
    metavar="FILE",
    required=True,
    help="File to write, as JSON lines. Must not exist.",
)
@set_option
@ray_option
@run_options
def command(
    recipe: str, path: Path, overrides: dict[str, Any], as_json: bool, **options: Any
) -> None:
    """Label unlabeled images of RECIPE, K per class, with its teacher or another model.

    RECIPE is a file, or the name of a shipped recipe. If several classes claim an image, the one
    with the highest probability gets it. Each line of the file has an image, its class and the
    model's confidence. You may correct classes and remove lines. Supervised methods train on the
    file with --set data.pseudo_labels=FILE.

    The method uses the recipe's baseline section if that has the same method.
    """
    from kdedge.setup.method import recipe_uses_labels

    file = pseudo_label(recipe, path, overrides=overrides, **options)
    lines = [f"{file.n_images} images of {file.n_classes} classes by {file.method}."]
    if file.accuracy_percent is not None:
        right = decimals(file.accuracy_percent)
        lines.append(f"{right} % of the pseudo-labels agree with the images' own labels.")
    lines.append(f"Wrote {path}")
    # Baseline keys are left out: they may be settings of the method that labeled the images
    kept = {key: value for key, value in overrides.items() if key.split(".")[0] != "baseline"}
    given = load_recipe(recipe, kept)
    has_both = None not in (given.recipe.teacher, given.recipe.student)
    following = ("distill", recipe) if has_both else ("train", recipe, "--method", "coop")
    if has_both and not recipe_uses_labels(given):
        kept = merged(kept, {"student.settings.labeled_weight": 1.0})
    kept = merged(kept, {"data.pseudo_labels": path})
    lines.append(next_line(*following, overrides=kept, given=("root", "device")))
    print_result(file, as_json=as_json, text="\n".join(lines))
