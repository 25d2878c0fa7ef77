"""Writes pseudo-labels for a recipe's unlabeled images, by zero-shot CLIP or a trained method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdedge.config.load import LoadedRecipe
from kdedge.data.images import Images
from kdedge.data.pseudo_labels import check_enough, most_probable, write_pseudo_labels
from kdedge.errors import Interrupted, RecipeError, first_line
from kdedge.files import refuse_existing, sha256_json
from kdedge.runs.find import newest
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import LiveModel, MethodModel, RunModel, load_run
from kdedge.setup.classes import load_classes
from kdedge.setup.data import RecipeData
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.training.distill import teacher_and_student
from kdedge.training.pseudo_labels import (
    accuracy_percent,
    true_labels,
    warn_of_unpredicted,
)
from kdedge.training.run_job import run_job
from kdedge.training.student import workspace_of
from kdedge.training.teach import baseline_job, with_baseline
from kdedge.training.teacher_store.fill import StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store
from kdedge.workers import WorkerResources


@dataclass(frozen=True)
class LabeledPool:
    """A file of pseudo-labels that was written.

    Attributes:
        path: the file.
        method: name of the method that predicted them.
        n_images: number of images with a pseudo-label.
        n_classes: number of classes with a pseudo-label.
        accuracy_percent: share of correct pseudo-labels; None if the source has no labels.
        run: the method's run; None if it needs no training.
    """

    path: Path
    method: str
    n_images: int
    n_classes: int
    accuracy_percent: float | None
    run: RunFolder | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        run = None if self.run is None else str(self.run.path)
        return {**vars(self), "path": str(self.path), "run": run}


def label_pool(
    loaded: LoadedRecipe, workspace: Workspace, method: str, path: Path, *, per_class: int
) -> LabeledPool:
    """Writes pseudo-labels of every class for a recipe's unlabeled images.

    Trains the method first, as `train` does, if it needs training and has no finished run. An
    interrupted run is resumed.

    Args:
        loaded: the recipe. If it names a file of pseudo-labels, they are trained on like labels.
        workspace: where the command works.
        method: predicts the labels, on the student's backbone; or `teacher`, the recipe's.
        path: the file to write; must not exist yet.
        per_class: number of images per class.

    Raises:
        RecipeError: the file exists, its folder does not, or the method or a setting is wrong.
        DataError: there are fewer unlabeled images than classes x `per_class`.
    """
    refuse_existing(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RecipeError(
            f"The folder {folder} for {path.name} does not exist.\n"
            "  Create it, or choose another path with --output."
        )
    loaded = loaded if method == "teacher" else with_baseline(loaded, method)
    classes = load_classes(loaded.recipe)
    images = RecipeData(loaded.recipe, classes, workspace)
    pool = images.require("unlabeled", "they are to get pseudo-labels")
    everything = range(len(classes.names))
    check_enough(len(pool.indices), per_class, n_classes=len(everything))
    model = _find_model(loaded, workspace, method)
    filler = _logits_filler(model, loaded, pool, workspace)
    filler.fill()
    logits = filler.store.read(filler.store.indices.tolist(), 1)
    probabilities = logits.softmax(dim=-1).numpy()
    warn_of_unpredicted(probabilities, classes, among=everything)
    labels = most_probable(probabilities, per_class, classes=everything)
    made_by = filler.store.description["teacher"]
    write_pseudo_labels(
        path, labels, pool, class_names=classes.names, method=method, made_by=made_by
    )
    # Not the folder and its lock, which another command may be waiting for, nor its files
    for file, _ in filler.store.mapped:
        file.unlink(missing_ok=True)
    given = {pool.indices[label.image]: label.label for label in labels}
    return LabeledPool(
        path=path,
        method=method,
        n_images=len(given),
        n_classes=len(set(given.values())),
        accuracy_percent=accuracy_percent(given, true_labels(loaded.recipe, classes, pool)),
        run=model.run if isinstance(model, RunModel) else None,
    )


def _logits_filler(
    model: MethodModel, loaded: LoadedRecipe, images: Images, workspace: Workspace
) -> StoreFiller:
    """Computes a model's logits for the unlabeled images, and keeps them on disk meanwhile.

    They are kept in a store like a teacher's features, as C float32 values per image. Workers share
    its files, and logits that a killed command has finished are not computed again.
    """
    provenance = [model.vectors_provenance, model.features_provenance]
    store = TeacherStore(
        workspace.root / ".cache" / "logits",
        describe_store(
            provenance=sha256_json(["logits", *provenance]),
            preprocess=model.preprocess,
            augment=None,
            precision="fp32",
        ),
        digests={i: images.digests[i] for i in images.indices},
        dim=len(model.class_names),
        n_views=1,
        dtype=torch.float32,
        name="Logits",
    )
    run = model.run.path.absolute() if isinstance(model, RunModel) else None
    opens = partial(_open, loaded, run, model.class_names, workspace.root.absolute())
    return StoreFiller(
        store, model, images.source, opens=opens, workers=workspace.workers, answers="logits"
    )


def _open(
    loaded: LoadedRecipe,
    run: Path | None,
    names: Sequence[str],
    root: Path,
    resources: WorkerResources,
) -> MethodModel:
    """Opens the model in a worker's process: a run, or else the recipe's untrained baseline."""
    workspace = workspace_of(root, resources)
    if run is not None:
        return load_run(RunFolder.open(run), workspace, names=names)
    setup = set_up_role(loaded, "baseline", workspace)
    return LiveModel(setup, setup.build())


def _find_model(loaded: LoadedRecipe, workspace: Workspace, method: str) -> MethodModel:
    """The teacher, or the recipe's baseline, which is untrained if it needs no training.

    An interrupted baseline is resumed.
    """
    if method == "teacher":
        run, _ = teacher_and_student(loaded, workspace, resume=True)
        if run is None:
            raise RecipeError(
                "The teacher is a file of probabilities, which `kdedge distill` reads itself.\n"
                "  Name another method with --method."
            )
        return load_run(run, workspace)
    job = baseline_job(loaded, workspace)
    if not (job.choice.is_solved or job.method.trainable_parameters()):
        return job.model()
    key, root = job.key(), workspace.root
    resume = newest(root, key=key, is_finished=False) is not None
    try:
        return load_run(newest(root, key=key) or run_job(job, resume=resume), workspace)
    except Interrupted as error:
        raise Interrupted(
            f"{first_line(error)}.\n  Run the same command again: it resumes from there.",
            signum=error.exit_code - 128,
        ) from error
