"""Pseudo-labels for a recipe's unlabeled images, by zero-shot CLIP or a trained method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import LoadedRecipe
from kdedge.data.classes import class_list_hash
from kdedge.data.pseudo_labels import Origin, check_enough, most_probable, write_pseudo_labels
from kdedge.errors import DataError, RecipeError
from kdedge.training.baseline import baseline_job, with_baseline
from kdedge.training.fit import finished_run, run_job
from kdedge.training.measure import Model
from kdedge.training.parts import Classes, choose_method, load_classes, settings_record
from kdedge.training.pseudo_labels import (
    accuracy_percent,
    in_source,
    load_pool,
    pool_probabilities,
    true_labels,
    warn_of_unpredicted,
)
from kdedge.training.runs import RunFolder
from kdedge.training.teach import cache_folder
from kdedge.training.teachers import (
    has_class_vectors,
    load_teacher,
    load_without_class_vectors,
    made_by,
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
    pool = load_pool(loaded.recipe, classes, why="they are to get pseudo-labels")
    check_enough(len(pool.indices), per_class, n_classes=len(classes.names))
    run, model, backbone, maker = _model(loaded, classes, root=root, device=device)
    probabilities = pool_probabilities(model, pool, preprocess=backbone.preprocess, device=device)
    everything = range(len(classes.names))
    warn_of_unpredicted(probabilities, classes, among=everything)
    labels = in_source(most_probable(probabilities, per_class, classes=everything), pool)
    _check_free(path)
    write_pseudo_labels(
        path,
        labels,
        origin=Origin(
            method=method,
            made_by=maker,
            class_list=class_list_hash(classes.names),
            image_list=pool.list_hash,
        ),
        class_names=classes.names,
        keys={index: pool.source.items[index].key for index in pool.indices},
    )
    given = {one.image: one.label for one in labels}
    truth = true_labels(loaded.recipe, classes, pool)
    right = accuracy_percent(given, truth)
    return LabeledPool(path, method, len(given), len(set(given.values())), right, run)


def _check_free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise RecipeError(f"{path} is there already.\n  Choose another name, or move it away.")
    if not path.absolute().parent.is_dir():
        raise RecipeError(
            f"There is no folder {path.absolute().parent} for {path.name}.\n"
            "  Make it, or name another place with -o."
        )


def _model(
    loaded: LoadedRecipe, classes: Classes, *, root: Path, device: torch.device
) -> tuple[RunFolder | None, Model, Backbone, str]:
    """The run of the recipe's baseline, its model, the backbone under it, and the model's hash."""
    cache = cache_folder(root)
    choice = choose_method(loaded, "baseline")
    job = baseline_job(loaded, cache=cache, device=device)
    assert isinstance(job.backbone, Backbone)  # a baseline's is
    if not job.method.trainable_parameters():
        record = settings_record(choice)
        maker = made_by(job.backbone, job.method.module, classes, record)
        return None, job.method, job.backbone, maker
    run = finished_run(root, job.key()) or run_job(job, root=root, resume=True)
    if not has_class_vectors(choice):
        model: Model
        model, backbone = load_without_class_vectors(run, classes, device=device, cache=cache)
        return run, model, backbone, load_class_vectors(run.class_vectors).made_by
    teacher = load_teacher(run, classes, device=device, cache=cache)
    if not isinstance(teacher.backbone, Backbone):
        raise DataError(f"{run.path} has no text tower.")
    return run, teacher, teacher.backbone, teacher.stored.made_by
