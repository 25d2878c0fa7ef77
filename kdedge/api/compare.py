"""Compares two artifacts on the same images: what changed, and whether the new one is as good."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kdedge.api.evaluate import AnyArtifact, run_argument
from kdedge.api.predict import (
    AnyPath,
    ImageToClassify,
    open_inputs,
    opened,
    path_list,
    read_item,
)
from kdedge.errors import DataError, GateError, RecipeError, check_at_least, some_of
from kdedge.evaluation.comparison import (
    ComparedImage,
    LabeledComparison,
    ModelOutput,
    PredictionComparison,
    compare_predictions,
    shared_names,
)
from kdedge.files import printable
from kdedge.inference.classify import Classifier, ImageInput, Pixels, decoded
from kdedge.inference.lines import NonFiniteLogits, Result, UnreadableImage, visible
from kdedge.progress import progress
from kdedge.records.tables import Table, Tabled, images_text
from kdedge.runtime.artifact import model_file_at

log = logging.getLogger(__name__)


def compare(
    old: AnyArtifact,
    new: AnyArtifact,
    *paths: AnyPath,
    labels: bool = False,
    require_no_worse: bool = False,
    batch: int | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
) -> Comparison:
    """Compares what two artifacts answer on the same images.

    If `predict` would take files of different precisions, the float32 files are compared.

    Args:
        old: an artifact or a run (its newest artifact): the object, its folder, or a run's name; or
            a file in an artifact's folder, such as `model.int8.onnx`.
        new: the same, for the one that may replace it.
        paths: images, videos, folders with all their subfolders, shards and CSV lists; each a
            path or a list of paths.
        labels: the images have labels: a folder has a subfolder for each class, a list a column of
            labels, a shard cls members. A number is a position in the old class list.
        require_no_worse: raise an error if McNemar's exact test shows that the new one is worse;
            needs `labels`.
        batch: images per call; by default as many as each artifact takes.
        threads: CPU threads; by default the engine's choice.
        root: folder of all runs; None for the one of KDEDGE_RUNS, or `runs`.

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
        >>> print(comparison.predictions.agreement_percent)
    """
    if require_no_worse and not labels:
        raise RecipeError(
            "Whether the new one is no worse can only be tested on images with labels.\n"
            "  Add --labels, and name a folder with a subfolder for each class, or a CSV list."
        )
    named = path_list(paths)
    if not named:
        raise RecipeError("No path is given.\n  Name images, folders, shards or CSV lists.")
    if "-" in named:
        raise RecipeError("Standard input cannot be compared on.\n  Name files or folders.")
    check_at_least(1, batch=batch, threads=threads)
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(opened(source, threads=threads, root=root)) for source in (old, new)
        )
        if first.file.precision != second.file.precision:  # or its effect would be the new one's
            first, second = (
                stack.enter_context(opened(source, precision="fp32", threads=threads, root=root))
                if model.file.precision != "fp32" and model_file_at(run_argument(source)) is None
                else model
                for source, model in ((old, first), (new, second))
            )
        files = [(model.artifact.path / model.file.name).resolve() for model in (first, second)]
        if files[0] == files[1]:
            log.warning("%s is compared with itself. Name another artifact or file.", files[0])
        comparison = _compared(first, second, named, reads_labels=labels, batch=batch)
    labeled = comparison.predictions.labeled
    if require_no_worse and labeled is not None and labeled.verdict == "worse":
        error = GateError(
            f"{comparison.verdict}\n  Accuracy: {accuracies_text(labeled)}."
            " Keep the old one, or train again."
        )
        error.result = comparison
        raise error
    return comparison


def _compared(
    old: Classifier, new: Classifier, paths: Sequence[str], *, reads_labels: bool, batch: int | None
) -> Comparison:
    """Asks two classifiers about the same images.

    Raises:
        DataError: no image can be read, or none has a label that both know.
    """
    names = [classifier.artifact.class_names for classifier in (old, new)]
    shared_names(*names)  # before the slow work
    label_names = tuple(dict.fromkeys((*names[0], *names[1])))  # positions are those of the old
    inputs = open_inputs(paths, label_names=label_names if reads_labels else None)
    compared: list[ComparedImage] = []
    unreadable: list[UnreadableImage] = []
    without_answer: list[NonFiniteLogits] = []
    with progress("comparing", inputs.n_images, unit="images") as advance:
        classified = classify_with_both(old, new, inputs.items, batch=batch)
        for number, (item, *results) in enumerate(classified, 1):
            advance(number)
            outputs = []
            for which, result in zip(("old", "new"), results, strict=True):
                if isinstance(result, UnreadableImage):
                    unreadable.append(result)
                    break
                if isinstance(result, NonFiniteLogits):
                    without_answer.append(NonFiniteLogits(item.key, f"{which}: {result.reason}"))
                outputs.append(ModelOutput.of(result))
            else:
                label = None if item.label is None else label_names[item.label]
                compared.append(ComparedImage(item.key, outputs[0], outputs[1], label))
    if not compared:
        if not unreadable:
            raise DataError("There is no image to compare on.\n  Name other images.")
        raise DataError(
            f"None of {images_text(len(unreadable))} can be read.\n  The first is"
            f" {unreadable[0].key}: {unreadable[0].reason}."
        )
    counts = compare_predictions(compared, old_names=names[0], new_names=names[1])
    if reads_labels and counts.labeled is None:
        raise DataError(
            "No image has a label of a class that both artifacts have.\n  Name a folder with a"
            " subfolder for each class, a CSV list with labels, or shards with cls members."
        )
    return Comparison(_described(old), _described(new), counts, unreadable, without_answer)


def _described(classifier: Classifier) -> ComparedModel:
    file, artifact = classifier.file, classifier.artifact
    runtime, n_classes = classifier.backend.describe(), len(artifact.class_names)
    return ComparedModel(str(artifact.path / file.name), file.precision, runtime, n_classes)


_MOST_SHOWN = 20  # images, classes and reasons; the record has all


@dataclass(frozen=True)
class ComparedModel:
    """A model file that was compared.

    Attributes:
        file: the model file, with its folder.
        precision: its precision.
        runtime: what ran it.
        n_classes: number of its classes.
    """

    file: str
    precision: str
    runtime: str
    n_classes: int

    def __str__(self) -> str:
        return f"{self.file} ({self.precision}), {self.n_classes:,} classes, on {self.runtime}"


@dataclass(frozen=True)
class Comparison(Tabled):
    """Two artifacts on the same images; printed and shown in a notebook as a table of changes.

    Attributes:
        old: the old artifact's file.
        new: the new one's.
        predictions: agreement, changed predictions, counts by class, and accuracies with labels.
        unreadable: images that cannot be read, which are left out.
        without_answer: images for which a model gives NaN or infinity; they count as changed.
    """

    old: ComparedModel
    new: ComparedModel
    predictions: PredictionComparison
    unreadable: Sequence[UnreadableImage]
    without_answer: Sequence[NonFiniteLogits]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = self.predictions.to_dict()
        for changed in values["changed"]:
            changed["image"] = printable(changed["image"])
        return {
            "old": dataclasses.asdict(self.old),
            "new": dataclasses.asdict(self.new),
            **values,
            "unreadable": list(map(_failed, self.unreadable)),
            "without_answer": list(map(_failed, self.without_answer)),
        }

    @property
    def table(self) -> Table:
        """The first images whose class changed."""
        has_labels = self.predictions.labeled is not None
        header = ["image", "old", "score", "new", "score", *(["label"] if has_labels else [])]
        rows = []
        for changed in self.predictions.changed[:_MOST_SHOWN]:
            cells = [visible(changed.image)]
            for answer in (changed.old, changed.new):
                score = answer.score_percent
                cells += [visible(str(answer)), "-" if score is None else f"{score:.2f} %"]
            rows.append([*cells, *([visible(changed.label or "-")] if has_labels else [])])
        return header, rows

    @property
    def verdict(self) -> str:
        """Whether the new one is as good, in words; empty without labels."""
        labeled, old, new = self.predictions.labeled, self.old.precision, self.new.precision
        if labeled is None:
            return ""
        files = "" if old == new else f" The old file is {old} and the new one {new}."
        return f"{labeled.sentence()}{files}"

    @property
    def notes(self) -> list[str]:
        """What was compared, and the figures."""
        found = self.predictions
        n_more = len(found.changed) - _MOST_SHOWN
        notes = [f"and {n_more:,} more changed answers"] if n_more > 0 else []
        if not found.changed:
            notes.append("No answer has changed.")
        counts = sorted(found.classes, key=lambda x: -abs(x.n_new - x.n_old))
        often = [
            f"{visible(x.class_name)} {x.n_old:,} -> {x.n_new:,}"
            for x in counts
            if x.n_old != x.n_new
        ]
        if often:
            notes.append(
                f"how often a class is the answer: {', '.join(some_of(often, _MOST_SHOWN))}"
            )
        notes += some_of((f"{visible(x.key)}: {x.reason}" for x in self.unreadable), _MOST_SHOWN)
        notes += [f"old: {self.old}", f"new: {self.new}"]
        n_bad = [len(self.unreadable), len(self.without_answer)]
        notes.append(
            f"{images_text(found.n_images)}, and {n_bad[0]:,} unreadable;"
            f" {n_bad[1]:,} answers with NaN or infinity"
        )
        notes.append(f"{found.n_shared:,} classes that both have")
        for which, names in (("old", found.only_old), ("new", found.only_new)):
            if names:
                shown = ", ".join(some_of(map(visible, names), _MOST_SHOWN))
                notes.append(f"only the {which} one has {shown}")
        if found.agreement_percent is None:
            notes.append("agreement: none, as each answer is a class that one of them lacks")
        else:
            n_compared = found.n_images - found.n_unshared
            notes.append(
                f"agreement {found.agreement_percent:.2f} %: {found.n_agree:,} of"
                f" {images_text(n_compared)}; {found.n_unshared:,} answered with a class that only"
                " one has left out"
            )
        if found.mean_score_difference is None or found.mean_absolute_score_difference is None:
            notes.append("scores: not compared, as an artifact's head is argmax, without scores")
        else:
            notes.append(
                f"score, new minus old: {found.mean_score_difference:+.2f} points on average,"
                f" {found.mean_absolute_score_difference:.2f} without the sign"
            )
        if found.labeled is not None:
            notes += [f"accuracy: {accuracies_text(found.labeled)}", self.verdict]
        return notes


def _failed(image: UnreadableImage | NonFiniteLogits) -> dict[str, str]:
    return {"image": printable(image.key), "reason": image.reason}


def accuracies_text(labeled: LabeledComparison) -> str:
    """Both accuracies in words."""
    left_out = f"; {images_text(labeled.n_left_out)} of classes that only one has left out"
    return (
        f"old {labeled.old_accuracy_percent:.2f} %, new"
        f" {labeled.new_accuracy_percent:.2f} % on {images_text(labeled.n_labeled)} with labels"
        f"{left_out if labeled.n_left_out else ''}"
    )


def classify_with_both(
    old: Classifier, new: Classifier, items: Iterator[ImageToClassify], *, batch: int | None = None
) -> Iterator[tuple[ImageToClassify, Result, Result]]:
    """Classifies images with two classifiers, in their order: the results of each alone.

    Args:
        old: the first.
        new: the second.
        items: the images.
        batch: batch size; None: for each the largest that its artifact was made for.

    Raises:
        RecipeError: an artifact does not take batches of that size.
    """
    sizes = [classifier.max_batch if batch is None else batch for classifier in (old, new)]
    for classifier, size in zip((old, new), sizes, strict=True):
        classifier.check_batch(size)

    def prepared(image: ImageInput) -> tuple[Pixels, Pixels]:
        pixels = decoded(image)
        return old.prepare(pixels), new.prepare(pixels)

    with ThreadPoolExecutor(old.n_decoders, thread_name_prefix="decode") as pool:
        while chunk := list(islice(items, max(sizes))):
            columns = zip(*pool.map(prepared, map(read_item, chunk)), strict=True)
            pairs = []
            for model, size, pixels in zip((old, new), sizes, columns, strict=True):
                keyed = list(zip((item.key for item in chunk), pixels, strict=True))
                batches = (keyed[start : start + size] for start in range(0, len(keyed), size))
                pairs.append([x for rows in batches for x in model.classify_batch(rows, top=1)])
            yield from zip(chunk, *pairs, strict=True)
