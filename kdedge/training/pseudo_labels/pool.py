"""Pseudo-labels for a recipe's unlabeled images, by zero-shot CLIP or a trained method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import LoadedRecipe
from kdedge.data.pseudo_labels import check_enough, most_probable
from kdedge.errors import Interrupted, RecipeError
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import Model
from kdedge.runs.model import load_teacher, load_without_class_vectors
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.backbone import cache_folder
from kdedge.setup.classes import Classes, load_classes
from kdedge.setup.method import choose_method, has_class_vectors
from kdedge.training.baseline import baseline_job, with_baseline
from kdedge.training.job.job import Job
from kdedge.training.job.run_job import finished_run, run_job, unfinished_run
from kdedge.training.pseudo_labels.labels import (
    accuracy_percent,
    in_source,
    load_pool,
    pool_probabilities,
    true_labels,
    warn_of_unpredicted,
    write_for,
)


@dataclass(frozen=True)
class LabeledPool:
    """What was written.

    Attributes:
        path: the file.
        method: whose answers they are.
        n_images: that have a pseudo-label.
        n_classes: that these are of.
        accuracy_percent: share that is right, where the source of the images has labels too.
        run: of the method, where it was trained.
    """

    path: Path
    method: str
    n_images: int
    n_classes: int
    accuracy_percent: float | None
    run: RunFolder | None

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values."""
        return {
            "path": str(self.path),
            "method": self.method,
            "n_images": self.n_images,
            "n_classes": self.n_classes,
            "accuracy_percent": self.accuracy_percent,
            "run": None if self.run is None else str(self.run.path),
        }


def label_pool(
    loaded: LoadedRecipe,
    method: str,
    path: Path,
    *,
    per_class: int,
    root: Path,
    device: torch.device,
) -> LabeledPool:
    """Writes pseudo-labels of every class for a recipe's unlabeled images.

    A method that is trained is trained first, as `train` does, where no finished run of it is
    there; an interrupted one goes on.

    Args:
        loaded: the recipe; its file of pseudo-labels, if it names one, is trained on like labels.
        method: on the student's backbone.
        path: where to; no file may be there.
        per_class: images of each class.
        root: folder of all runs.
        device: where.

    Raises:
        RecipeError: there is such a file, or no folder for it; the method or a setting is wrong.
        DataError: there are fewer unlabeled images than classes x `per_class`.
    """
    _check_free(path)
    loaded = with_baseline(loaded, method)
    classes = load_classes(loaded.recipe)
    everything = range(len(classes.names))
    pool = load_pool(loaded.recipe, classes, why="they are to get pseudo-labels")
    check_enough(len(pool.indices), per_class, n_classes=len(everything))
    found = _find_model(loaded, classes, root=root, device=device)
    probabilities = pool_probabilities(
        found.model, pool, preprocess=found.preprocess, device=device
    )
    warn_of_unpredicted(probabilities, classes, among=everything)
    labels = in_source(most_probable(probabilities, per_class, classes=everything), pool)
    _check_free(path)  # once more: training may have taken hours
    write_for(pool, labels, path, classes=classes, method=method, made_by=found.made_by)
    given = {one.image: one.label for one in labels}
    return LabeledPool(
        path=path,
        method=method,
        n_images=len(given),
        n_classes=len(set(given.values())),
        accuracy_percent=accuracy_percent(given, true_labels(loaded.recipe, classes, pool)),
        run=found.run,
    )


def _check_free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise RecipeError(f"{path} is there already.\n  Choose another name, or move it away.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RecipeError(
            f"There is no folder {folder} for {path.name}.\n"
            "  Make it, or name another place with -o."
        )


@dataclass(frozen=True)
class _Found:
    """A model, how its images are prepared, the hash of what made it, and its run if it has one."""

    model: Model
    preprocess: Preprocess
    made_by: str
    run: RunFolder | None


def _find_model(
    loaded: LoadedRecipe, classes: Classes, *, root: Path, device: torch.device
) -> _Found:
    """The recipe's baseline: as it is where nothing is trained, else of its finished run."""
    cache, choice = cache_folder(root), choose_method(loaded, "baseline")
    job = baseline_job(loaded, cache=cache, device=device)
    preprocess = job.backbone.preprocess
    if not job.method.trainable_parameters():
        return _Found(job.method, preprocess, job.made_by(), None)
    run = finished_run(root, job.key()) or _train(job, root)
    if not has_class_vectors(choice):
        method, _ = load_without_class_vectors(run, classes, device=device, cache=cache)
        maker = load_class_vectors(run.class_vectors).made_by
        return _Found(method, preprocess, maker, run)
    teacher = load_teacher(run, classes, device=device, cache=cache)
    return _Found(teacher, preprocess, teacher.stored.made_by, run)


def _train(job: Job, root: Path) -> RunFolder:
    """Trains the method, or goes on with its interrupted run."""
    try:
        return run_job(job, root=root, resume=unfinished_run(root, job) is not None)
    except Interrupted as error:
        where = str(error).partition("\n")[0]
        raise Interrupted(
            f"{where}\n  Run the same command again: it goes on from there.",
            signum=error.exit_code - 128,
        ) from error
