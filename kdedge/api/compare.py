"""Compares two artifacts on the same images: what changed, and whether the new one is as good."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from itertools import tee
from pathlib import Path

from kdedge.api.inputs import AnyPath, open_inputs, path_list
from kdedge.api.model import load
from kdedge.errors import DataError, GateError, RecipeError, check_at_least
from kdedge.inference.classify import Classifier
from kdedge.inference.comparison import (
    ComparedImage,
    ComparedModel,
    Comparison,
    compare_predictions,
    predicted_class,
)
from kdedge.messages import option, some_of
from kdedge.progress import progress
from kdedge.records.tables import images_text
from kdedge.runs.find import RunOrArtifact
from kdedge.runtime.artifact import model_file_at
from kdedge.runtime.preprocess import UnreadableImage

log = logging.getLogger(__name__)


def compare(
    old: RunOrArtifact,
    new: RunOrArtifact,
    *paths: AnyPath,
    labels: bool = False,
    require_no_worse: bool = False,
    batch: int | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
) -> Comparison:
    """Compares the predictions of two artifacts on the same images.

    If `predict` would take files of different precisions, the float32 files are compared.

    Args:
        old: an artifact or a run (its newest artifact): the object, its folder, or a run's name; or
            a file in an artifact's folder, such as `model.int8.onnx`.
        new: the same, for the one that may replace it.
        paths: images, videos, folders with all their subfolders, shards and CSV lists; each a
            path or a list of paths.
        labels: the images have labels: a folder has a subfolder for each class, a list has a column
            of labels, a shard has cls members. A number is a position in the old class list.
        require_no_worse: raise an error if McNemar's exact test shows that the new one is worse;
            needs `labels`.
        batch: images per call; by default as many as each artifact takes.
        threads: CPU threads; by default the runtime's choice.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Returns:
        What changed.

    Raises:
        GateError: the new one is worse, and `require_no_worse` is set; `result` has what changed.
        DataError: there is no artifact, no image can be read, a label is unknown, or the artifacts
            have no class in common.
        RecipeError: an argument is wrong.
        SetupError: this machine cannot run a file.

    Examples:
        >>> int8 = "artifacts/01/model.int8.onnx"
        >>> comparison = kdedge.compare("artifacts/01", int8, "new-images")
        >>> print(comparison.agreement_percent)
    """
    if require_no_worse and not labels:
        raise RecipeError(
            "Whether the new one is no worse can only be tested on images with labels.\n"
            f"  Add {option('--labels')}, and name a CSV list, or a folder with one for each class."
        )
    given_paths = path_list(paths, takes_stdin=False)
    check_at_least(1, batch=batch, threads=threads)
    with contextlib.ExitStack() as stack:
        sources = (old, new)
        models = [stack.enter_context(load(x, threads=threads, root=root)) for x in sources]
        # Otherwise the comparison would also show the effect of the precision
        if models[0].file.precision != models[1].file.precision:
            for i, source in enumerate(sources):
                is_file = model_file_at(source) is not None
                if models[i].file.precision != "fp32" and not is_file:
                    exact = load(source, precision="fp32", threads=threads, root=root)
                    models[i] = stack.enter_context(exact)
        files = [(model.artifact.path / model.file.name).resolve() for model in models]
        if files[0] == files[1]:
            log.warning(f"{files[0]} is compared with itself. Name another artifact or file.")
        comparison = _compare_models(models, given_paths, reads_labels=labels, batch=batch)
    labeled = comparison.labeled
    if require_no_worse and labeled is not None and labeled.verdict == "worse":
        error = GateError(
            f"{comparison.verdict}\n  Accuracy: {labeled.accuracies()}."
            " Keep the old one, or train again."
        )
        error.result = comparison
        raise error
    return comparison


def _compare_models(
    models: Sequence[Classifier], paths: Sequence[str], *, reads_labels: bool, batch: int | None
) -> Comparison:
    """Classifies the same images with the old and the new model and compares their predictions.

    Raises:
        DataError: no image can be read, or none has a label that both know.
    """
    names = [model.artifact.class_names for model in models]
    if not set(names[0]) & set(names[1]):
        shown = [", ".join(some_of(some, 3)) for some in names]
        raise DataError(
            f"The two class lists have no name in common. Old: {shown[0]}. New: {shown[1]}.\n"
            "  Compare artifacts of the same classes."
        )
    # Old classes keep their positions
    label_names = tuple(dict.fromkeys((*names[0], *names[1]))) if reads_labels else None
    inputs = open_inputs(paths, label_names=label_names, n_positions=len(names[0]))
    items, *copies = tee(inputs, 3)
    streams = [
        classifier.classify_many(((item.key, item.image) for item in own), batch=batch)
        for classifier, own in zip(models, copies, strict=True)
    ]
    compared: list[ComparedImage] = []
    unreadable: list[UnreadableImage] = []
    n_images = len(inputs) if isinstance(inputs, list) else None
    with progress("comparing", n_images, unit="images") as advance:
        for number, (item, *results) in enumerate(zip(items, *streams, strict=True), 1):
            advance(number)
            by_old, by_new = results
            if isinstance(by_old, UnreadableImage) or isinstance(by_new, UnreadableImage):
                unreadable += [x for x in results if isinstance(x, UnreadableImage)][:1]
                continue
            label = label_names[item.label] if label_names and item.label is not None else None
            predictions = (*predicted_class(by_old), *predicted_class(by_new))
            compared.append(ComparedImage(item.key, *predictions, label))
    if not compared:
        if not unreadable:
            raise DataError("There is no image to compare on.\n  Name other images.")
        raise DataError(
            f"None of {images_text(len(unreadable))} can be read.\n  The first is"
            f" {unreadable[0].key}: {unreadable[0].reason}."
        )
    described = [
        ComparedModel(
            str(model.artifact.path / model.file.name),
            model.file.precision,
            model.backend.describe(),
            len(model.artifact.class_names),
        )
        for model in models
    ]
    comparison = compare_predictions(
        compared, *described, old_names=names[0], new_names=names[1], unreadable=unreadable
    )
    if reads_labels and comparison.labeled is None:
        raise DataError(
            "No image has a label of a class that both artifacts have.\n  Name a folder with a"
            " subfolder for each class, a CSV list with labels, or shards with cls members."
        )
    return comparison
