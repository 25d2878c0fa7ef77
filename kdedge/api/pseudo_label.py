"""Pseudo-labels of a recipe's unlabeled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.recipe import AnyRecipe, Overrides, set_texts
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.config.paths import check_paths
from kdedge.errors import RecipeError
from kdedge.setup.packages import need_training_packages
from kdedge.workers.open import open_workers
from kdedge.workers.protocol import EngineName

if TYPE_CHECKING:
    from kdedge.training.label_pool import LabeledPool

TEACHER, TRANSDUCTIVE = "teacher", "transductive"
"""In place of a method: the recipe's teacher labels each image, or all images together."""


def pseudo_label(
    recipe: AnyRecipe,
    output: str | Path,
    *,
    per_class: int | None = None,
    method: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
    engine: EngineName = "local",
) -> LabeledPool:
    """Labels unlabeled images of a recipe with its teacher, or a model on the student's backbone.

    Each class gets the images with the highest probability of it. An image that several classes
    claim goes to the most probable one. Each line of the file has an image, its class and the
    model's confidence. Train on the file with the key `data.pseudo_labels`.

    The method `transductive` labels all images together, from the features and probabilities of the
    recipe's teacher (TransCLIP, arXiv:2406.01837), as distillation does under `student.targets`.
    It also writes class probabilities, to a second file with the ending `.safetensors`.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        output: the file to write, as JSON lines; it must not exist.
        per_class: images of each class; None for every image, with `transductive` only.
        method: `zeroshot`, `transductive`, `teacher` (the recipe's), or a method; teachers and
            methods are trained first unless a finished run exists. None for the teacher if the
            recipe has labeled images and a student, else `zeroshot`.
        overrides: keys of the recipe with other values.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        engine: who reads and labels the images: this process, or the workers of a Ray cluster.

    Returns:
        What was written, and the share of correct labels if known.

    Raises:
        RecipeError: the recipe is wrong, the file exists, or `per_class` is missing.
        DataError: there are too few unlabeled images.
        SetupError: torch, weights or the device is missing; or Ray, or a node of its cluster does
            not see a file.
    """
    texts = set_texts(overrides)
    if method is None:
        given = load_recipe(recipe, texts).recipe
        is_taught = None not in (given.teacher, given.student, given.data.labeled)
        method = TEACHER if is_taught else "zeroshot"
    is_transductive = method == TRANSDUCTIVE
    if per_class is None and not is_transductive:
        raise RecipeError(
            f"{method} labels a number of images of each class, and per_class is missing.\n"
            "  Set per_class (--per-class), or use the method transductive to label every image."
        )
    loaded = _load_for(None if method in {TRANSDUCTIVE, TEACHER} else method, recipe, texts)
    check_paths(loaded)
    need_training_packages("Labeling images")
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.label_pool import label_pool, label_transductively

    with open_workers(engine, device) as workers:
        workspace = Workspace(Path(root), choose_device(device), workers=workers)
        if per_class is None or is_transductive:
            return label_transductively(loaded, workspace, Path(output), per_class=per_class)
        return label_pool(loaded, workspace, method, Path(output), per_class=per_class)


def _load_for(method: str | None, recipe: AnyRecipe, overrides: list[str]) -> LoadedRecipe:
    """Loads the recipe, without its baseline section if that names another method than given."""
    loaded = load_recipe(recipe, overrides)
    baseline = loaded.recipe.baseline
    if method is None or baseline is None or baseline.method in {None, method}:
        return loaded
    return load_recipe(recipe, ["baseline={}", *overrides])
