"""Writes pseudo-labels for a recipe's unlabeled images, by zero-shot CLIP or a trained method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdedge.config.load import LoadedRecipe
from kdedge.data.images import Images
from kdedge.data.pseudo_labels import check_enough, most_probable, write_pseudo_labels
from kdedge.errors import Interrupted, RecipeError
from kdedge.files import refuse_existing, sha256_json
from kdedge.loading.decoding import Preparation
from kdedge.messages import first_line, option, same_call
from kdedge.paper.rounds import accuracy_percent, true_labels, warn_of_unpredicted
from kdedge.records.record import Record
from kdedge.runs.find import newest_run
from kdedge.runs.model import MethodModel, RunModel, load_run
from kdedge.setup.classes import load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.method import warn_of_unused_optim
from kdedge.setup.workspace import Workspace
from kdedge.training.distill import trained_teacher
from kdedge.training.evaluate_job import adjusted
from kdedge.training.output_store.fill import StoreFiller
from kdedge.training.output_store.store import OutputStore
from kdedge.training.run_job import run_job
from kdedge.training.student import check_predicts
from kdedge.training.teacher import baseline_job, with_baseline


@dataclass(frozen=True)
class PseudoLabelFile(Record):
    """A file of pseudo-labels that was written.

    Attributes:
        path: the file.
        method: name of the method that predicted the pseudo-labels.
        n_images: number of images with a pseudo-label.
        n_classes: number of classes with a pseudo-label.
        accuracy_percent: share of correct pseudo-labels; None if the source has no labels.
        run: folder of the method's run; None if it needs no training.
    """

    path: Path
    method: str
    n_images: int
    n_classes: int
    accuracy_percent: float | None
    run: Path | None


def make_pseudo_label_file(
    loaded: LoadedRecipe, workspace: Workspace, method: str, path: Path, *, per_class: int
) -> PseudoLabelFile:
    """Writes pseudo-labels of every class for a recipe's unlabeled images.

    Trains the method first, as `train` does, if it needs training and has no finished run. An
    interrupted run is resumed.

    Args:
        loaded: the recipe. If it has a file of pseudo-labels, the method trains on them like on
            labels.
        workspace: the command's workspace.
        method: name of a method, which predicts labels on the student's backbone, or `teacher` for
            the recipe's teacher.
        path: the file to write; it must not exist.
        per_class: number of images per class.

    Raises:
        RecipeError: the file exists, its folder does not, the method or a setting is wrong, or
            torchrun has started several processes.
        DataError: there are fewer unlabeled images than classes x `per_class`.
    """
    if workspace.group.world_size > 1:
        raise RecipeError(
            "Pseudo-labels are written by one process.\n  Run the command without torchrun."
            f" With {option('--ray', 'ray=True')}, several machines compute the predictions."
        )
    refuse_existing(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RecipeError(
            f"The folder {folder} for {path.name} does not exist.\n"
            "  Create it, or choose another path."
        )
    if method != "teacher":
        loaded = with_baseline(loaded, method)
        warn_of_unused_optim(loaded, "baseline")
    classes = load_classes(loaded.recipe)
    images = RecipeImages(loaded.recipe, classes, workspace)
    pool = images.require("unlabeled", "they are to get pseudo-labels")
    everything = range(len(classes.names))
    check_enough(len(pool.indices), per_class, n_classes=len(everything))
    model = _trained_model(loaded, workspace, method, classes.names)
    offsets = None if model.offsets is None else model.offsets.tolist()
    made_by = sha256_json([model.vectors_hash, model.features_hash, classes.names, offsets])
    filler = _logits_filler(model, made_by, pool, workspace)
    filler.fill()
    probabilities = filler.store.read(filler.store.indices.tolist(), 1).softmax(dim=-1).numpy()
    warn_of_unpredicted(probabilities, classes, among=everything)
    labels = most_probable(probabilities, per_class, classes=everything)
    write_pseudo_labels(
        path, labels, pool, class_names=classes.names, method=method, made_by=made_by
    )
    # Deletes only files of these logits, not the folder with the lock of other commands
    for file, _ in filler.store.mapped:
        file.unlink(missing_ok=True)
    by_position = {pool.indices[label.row]: label.label for label in labels}
    return PseudoLabelFile(
        path=path,
        method=method,
        n_images=len(by_position),
        n_classes=len(set(by_position.values())),
        accuracy_percent=accuracy_percent(by_position, true_labels(loaded.recipe, classes, pool)),
        run=model.run.path if isinstance(model, RunModel) else None,
    )


def _logits_filler(
    model: MethodModel, made_by: str, images: Images, workspace: Workspace
) -> StoreFiller:
    """Makes the filler that computes a model's logits for the unlabeled images.

    Like a teacher's features, they are stored on disk, as C float32 values per image, so that
    workers can write them and a restarted command computes only missing ones.
    """
    store = OutputStore(
        workspace.root / ".cache" / "logits",
        Preparation(model.preprocess),
        features_hash=made_by,
        precision="fp32",
        digests={i: images.digests[i] for i in images.indices},
        dim=len(model.class_names),
        n_views=1,
        dtype=torch.float32,
        name="Store of logits",
    )
    workers = workspace.ray_workers
    return StoreFiller(store, model, MethodModel.logits, images.source, ray_workers=workers)


def _trained_model(
    loaded: LoadedRecipe, workspace: Workspace, method: str, names: Sequence[str]
) -> MethodModel:
    """The recipe's teacher or baseline; missing ones are trained, interrupted ones resumed."""
    try:
        if method == "teacher":
            return trained_teacher(loaded, workspace, names)
        job = baseline_job(loaded, workspace)
        check_predicts(job.setup, names)
        if not (job.setup.is_closed_form or job.method.trainable_parameters()):
            return adjusted(job, job.model())
        key = job.key()
        root = workspace.root
        resume = newest_run(root, key=key, is_finished=False) is not None
        return load_run(newest_run(root, key=key) or run_job(job, resume=resume), workspace)
    except Interrupted as error:
        raise Interrupted(
            f"{first_line(error)}.\n  {same_call()} again: it resumes from there.",
            signum=error.signum,
        ) from error
