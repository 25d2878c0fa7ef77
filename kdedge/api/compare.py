"""Compares two artifacts on the same images: what changed, and whether the new one is as good."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.api.artifact import artifact_folder
from kdedge.api.comparison import Compared, Comparison, FailedImage, accuracies_text
from kdedge.api.inputs import AnyPath, Item, open_inputs, path_list, read_item
from kdedge.api.predict import images_text
from kdedge.errors import DataError, GateError, RecipeError
from kdedge.evaluation.answers import Answer, AnsweredImage, compare_answers
from kdedge.inference.results import NonFiniteLogits, Result, UnreadableImage
from kdedge.progress import Advance, progress, working
from kdedge.runtime.artifact import FILE_NAME, Precision
from kdedge.runtime.threads import check_threads

if TYPE_CHECKING:
    from kdedge.inference.classify import Classifier

_LOG = logging.getLogger(__name__)


def compare(
    old: Any,
    new: Any,
    *paths: AnyPath,
    labels: bool = False,
    require_no_worse: bool = False,
    batch: int | None = None,
    threads: int | None = None,
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

    Returns:
        What changed.

    Raises:
        GateError: the new one is worse, and `require_no_worse` is set.
        DataError: there is no artifact, no image can be read, a label is unknown, or the artifacts
            have no class in common.
        RecipeError: an argument is wrong.
        SetupError: this machine cannot run a file.
    """
    if require_no_worse and not labels:
        raise no_labels_error()
    named = path_list(paths)
    if not named:
        raise RecipeError("No path is given.\n  Name images, folders, shards or CSV lists.")
    if "-" in named:
        raise RecipeError("Standard input cannot be compared on.\n  Name files or folders.")
    check_threads(threads)
    with contextlib.ExitStack() as opened:
        first, second = (opened.enter_context(_opened(one, threads)) for one in (old, new))
        if first.file.precision != second.file.precision:  # or its effect would be the new one's
            first, second = (
                opened.enter_context(_opened(one, threads, "fp32")) for one in (old, new)
            )
        files = [(one.artifact.path / one.file.name).resolve() for one in (first, second)]
        if files[0] == files[1]:
            _LOG.warning("%s is compared with itself. Name another artifact or file.", files[0])
        found = _Asker(first, second, named, reads_labels=labels).compare(batch)
    if require_no_worse:
        check_no_worse(found)
    return found


def check_no_worse(comparison: Comparison) -> None:
    """Applies the gate.

    Raises:
        GateError: McNemar's exact test shows that the new one is worse.
        RecipeError: there were no labels.
    """
    labeled = comparison.found.labeled
    if labeled is None:
        raise no_labels_error()
    if labeled.verdict == "worse":
        raise GateError(
            f"{comparison.verdict}\n  Accuracy: {accuracies_text(labeled)}."
            " Keep the old one, or train again."
        )


def no_labels_error() -> RecipeError:
    """The error for a gate without labels."""
    return RecipeError(
        "Whether the new one is no worse can only be tested on images with labels.\n"
        "  Add --labels, and name a folder with a subfolder for each class, or a CSV list."
    )


@contextlib.contextmanager
def _opened(
    source: Any, threads: int | None, precision: Precision | None = None
) -> Iterator[Classifier]:
    """Context with a loaded file of an artifact: the one named, or the one that suits.

    Args:
        source: a file, or what `artifact_folder` takes.
        threads: CPU threads.
        precision: of the file, unless one is named.
    """
    from kdedge.inference.classify import Classifier

    path = Path(getattr(source, "path", source)).expanduser()
    with working(f"loading {path}"):
        if path.is_file() and path.name != FILE_NAME:
            loaded = Classifier.load_named(path, n_threads=threads)
        else:
            folder = artifact_folder(path)
            loaded = Classifier.load(folder, precision=precision, n_threads=threads)
    try:
        yield loaded
    finally:
        loaded.backend.close()


class _Asker:
    """Asks two classifiers about the same images."""

    def __init__(
        self,
        old: Classifier,
        new: Classifier,
        paths: Sequence[str],
        *,
        reads_labels: bool,
    ) -> None:
        self._old, self._new = old, new
        both = (*old.artifact.class_names, *new.artifact.class_names)
        self._label_names = tuple(dict.fromkeys(both))  # positions are those of the old list
        self._reads_labels = reads_labels
        self._inputs = open_inputs(
            paths,
            label_names=self._label_names if reads_labels else None,
        )
        self._unreadable: list[FailedImage] = []
        self._without_answer: list[FailedImage] = []

    def compare(self, batch: int | None) -> Comparison:
        with progress("comparing", self._inputs.n_images, unit="images") as advance:
            found = compare_answers(
                self._answered(batch, advance),
                old_names=self._old.artifact.class_names,
                new_names=self._new.artifact.class_names,
            )
        if self._reads_labels and found.labeled is None:
            raise DataError(
                "No image has a label of a class that both artifacts have.\n  Name a folder with a"
                " subfolder for each class, a CSV list with labels, or shards with cls members."
            )
        old, new = _described(self._old), _described(self._new)
        return Comparison(old, new, found, self._unreadable, self._without_answer)

    def _answered(self, batch: int | None, advance: Advance) -> Iterator[AnsweredImage]:
        """Each image that can be read, with both answers.

        Raises:
            DataError: none can be read.
        """
        from kdedge.inference.pairs import Read, classify_with_both

        asked: deque[Item] = deque()

        def reads() -> Iterator[Read]:
            for item in self._inputs.items:
                asked.append(item)
                yield partial(read_item, item)

        n_answered = 0
        pairs = classify_with_both(self._old, self._new, reads(), batch=batch)
        for number, (old, new) in enumerate(pairs, 1):
            item = asked.popleft()
            advance(number)
            if isinstance(old, UnreadableImage) or isinstance(new, UnreadableImage):
                unread = old if isinstance(old, UnreadableImage) else new
                assert isinstance(unread, UnreadableImage)
                self._unreadable.append(FailedImage(item.key, unread.reason))
                continue
            self._note_failed(item.key, old, new)
            label = None if item.label is None else self._label_names[item.label]
            n_answered += 1
            yield AnsweredImage(item.key, Answer.of(old), Answer.of(new), label)
        if not n_answered:
            first = self._unreadable[0]
            raise DataError(
                f"None of {images_text(len(self._unreadable))} can be read.\n  The first is"
                f" {first.image}: {first.reason}."
            )

    def _note_failed(self, key: str, old: Result, new: Result) -> None:
        for whose, result in (("old", old), ("new", new)):
            if isinstance(result, NonFiniteLogits):
                self._without_answer.append(FailedImage(key, f"{whose}: {result.reason}"))


def _described(classifier: Classifier) -> Compared:
    file, artifact = classifier.file, classifier.artifact
    runtime, n_classes = classifier.backend.describe(), len(artifact.class_names)
    return Compared(str(artifact.path / file.name), file.precision, runtime, n_classes)
