"""Labels unlabeled images with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.train import training_workspace
from kdedge.config.load import AnyRecipe, Overrides, load_recipe
from kdedge.errors import check_at_least
from kdedge.files import home_path
from kdedge.runtime.process import torch_as_before

if TYPE_CHECKING:
    from kdedge.paper.pseudo_labels.file import PseudoLabelFile


@torch_as_before()
def pseudo_label(
    recipe: AnyRecipe,
    output: str | Path,
    *,
    per_class: int,
    method: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
    ray: bool = False,
) -> PseudoLabelFile:
    """Labels unlabeled images of a recipe with its teacher, or a model on the student's backbone.

    Each class gets the images with the highest probability of it. An image that several classes
    claim goes to the most probable one. Each line of the file has an image, its class and the
    model's confidence. Train on the file with the key `data.pseudo_labels`.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, a `Recipe` or a `LoadedRecipe`.
        output: the file to write, as JSON lines; it must not exist.
        per_class: images of each class.
        method: `zeroshot`, `teacher` (the recipe's), or a method; teachers and methods are trained
            first unless a finished run exists. If zero-shot CLIP or ridge is better on a trained
            teacher's labeled images, it is used instead, as in `distill`. None for the teacher if
            the recipe has one and what it learns from, else `zeroshot`.
        overrides: keys of the recipe with other values.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        ray: the workers of a Ray cluster read and label the images, not this process.

    Returns:
        The facts of the file, and the share of correct labels if it is known.

    Raises:
        RecipeError: the recipe is wrong, the file exists, or `per_class` is below 1.
        DataError: there are too few unlabeled images.
        SetupError: torch, weights or the device is missing; or Ray, or a node of its cluster does
            not see a file.
    """
    check_at_least(1, per_class=per_class)
    loaded = load_recipe(recipe, overrides)
    if method is None:
        from kdedge.setup.method import choose_method

        teacher = loaded.recipe.teacher
        data = loaded.recipe.data
        is_unable = teacher is None or teacher.file is not None
        if teacher and teacher.is_trained and data.labeled is None and data.pseudo_labels is None:
            is_unable = choose_method(loaded, "teacher").data_needs.labels
        method = "zeroshot" if is_unable else "teacher"
    path = home_path(output)
    with training_workspace(
        loaded, root, device, warn_for=["teacher"] if method == "teacher" else [], ray=ray
    ) as workspace:
        from kdedge.paper.pseudo_labels.file import make_pseudo_label_file

        return make_pseudo_label_file(loaded, workspace, method, path, per_class=per_class)
