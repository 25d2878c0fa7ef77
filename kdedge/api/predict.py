"""Classifies images, folders and videos with an exported artifact; needs no torch."""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, tee
from pathlib import Path
from typing import Any

from kdedge.api.arguments import RunOrArtifact
from kdedge.api.model import load
from kdedge.data.sources import MAX_FILE_BYTES, ImageSource, csv_list, folder, read_file
from kdedge.errors import DataError, RecipeError, check_at_least, get_logger, os_reason
from kdedge.inference.classify import Classifier, ImageInput
from kdedge.inference.lines import (
    Lines,
    NonFiniteLogits,
    Prediction,
    Result,
    UnreadableImage,
    result_values,
    shown_classes,
)
from kdedge.progress import progress
from kdedge.records.tables import Table, Tabled, images_text
from kdedge.runtime.artifact import Precision
from kdedge.runtime.preprocess import UnusableImage
from kdedge.runtime.video import frames_of_video, import_pyav, is_video

log = get_logger(__name__)


@dataclass(frozen=True)
class InputImage:
    """One image to classify.

    Attributes:
        key: name of the image in results.
        name: file name to save it under.
        image: the image, or a function that reads its file anew at each call.
        label: position of its class in the `label_names` of `open_inputs`; None if it has no label.
    """

    key: str
    name: str
    image: ImageInput
    label: int | None = None


InputImages = list[InputImage] | Iterator[InputImage]
"""Images to classify; an iterator if there is a video, whose number of frames is unknown."""


AnyPath = str | Path | Iterable[str | Path]
"""A path, or several."""


def path_list(arguments: Iterable[AnyPath]) -> tuple[str, ...]:
    """The paths of arguments, each of which is a path or a list of paths.

    Raises:
        RecipeError: there is no path, one is empty, or - (standard input) is not alone or has none.
    """
    lists = [[given] if isinstance(given, str | Path) else given for given in arguments]
    paths = tuple(str(path) for listed in lists for path in listed)
    if not paths:
        raise RecipeError("No path is given.\n  Name images, a folder, or - for standard input.")
    if "" in paths:
        raise RecipeError("A path is empty.\n  Name an image or a folder; . is the current folder.")
    if "-" in paths and len(paths) > 1:
        raise RecipeError("- (standard input) cannot be combined with other paths.")
    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        raise RecipeError("Standard input is a terminal.\n  Pipe an image into it.")
    return paths


def open_inputs(
    paths: Sequence[str], *, every: int = 1, label_names: Sequence[str] | None = None
) -> InputImages:
    """Opens the images to classify, in the order given; lists folders, shards and CSV lists.

    Args:
        paths: files and folders, or - alone for standard input.
        every: take the first and then every Nth frame of a video.
        label_names: class names of the labels, which are a folder's subfolders, a column of a CSV
            list or a shard's cls members; None reads no labels.

    Raises:
        DataError: a file or a folder does not exist, or a label is not a class name.
        MissingPackage: a video is named and PyAV is not installed.
    """
    if tuple(paths) == ("-",):
        data = sys.stdin.buffer.read(MAX_FILE_BYTES)
        return iter([InputImage("stdin", "stdin.jpg", data)] if data else [])
    labels: dict[str, Any] = {"class_names": label_names or (), "labeled": label_names is not None}
    parts: list[InputImages] = []
    for name in paths:
        path = Path(name).expanduser()
        try:
            is_folder, is_there = path.is_dir(), path.exists()
        except OSError as error:
            raise DataError(
                f"{name} cannot be read: {os_reason(error)}.\n"
                "  Name a file or folder that you may read."
            ) from error
        if is_folder:
            source = folder.open_source(path, **labels)
            has_videos = any(is_video(Path(f"_{kind}")) for kind in source.left_out)
            if has_videos or folder.has_pictures(source.left_out):
                skipped = folder.left_out_text(source.left_out)
                remedy = "\n  To classify a video, give its path." if has_videos else ""
                log.warning(f"{path}: skipped files: {skipped}.{remedy}")
            parts.append(_source_images(source, path))
        elif not is_there:
            raise DataError(f"{name} does not exist.\n  Name an image, or a folder of images.")
        elif path.suffix.lower() == ".tar":
            from kdedge.data.sources import webdataset  # only needed for shards

            shard = webdataset.open_source(str(path.absolute()), **labels)
            parts.append(_source_images(shard, path.parent))
        elif path.suffix.lower() == ".csv":
            parts.append(_source_images(csv_list.open_source(path, **labels), path.parent))
        elif is_video(path):
            import_pyav()  # fail before the model is loaded
            parts.append(_frames(path, every))
        else:
            parts.append([InputImage(name, path.name, partial(read_file, path.absolute()))])
    items = (item for part in parts for item in part)
    return list(items) if all(isinstance(part, list) for part in parts) else items


def _source_images(source: ImageSource, parent: Path) -> list[InputImage]:
    return [
        InputImage(
            str(parent / item.key), item.key.replace("/", "_"), partial(source.read, i), item.label
        )
        for i, item in enumerate(source.items)
    ]


def _frames(path: Path, every: int) -> Iterator[InputImage]:
    """Yields a video's frames; if the video is damaged, the last item has the reason."""
    try:
        for number, seconds, image in frames_of_video(path, every=every):
            time = "" if seconds is None else f"@{seconds:.3f}s"
            yield InputImage(f"{path}:{number}{time}", f"{path.stem}-{number:06d}.jpg", image)
    except UnusableImage as error:
        yield InputImage(str(path), path.name, error)


class Predictions(Tabled, list[Result]):
    """Results for images, in their order; printed and shown in a notebook as a table."""

    def __init__(self, results: Iterable[Result], *, top: int, tells_none: bool = False) -> None:
        super().__init__(results)
        self._top, self._tells_none = top, tells_none

    @property
    def classified(self) -> list[Prediction]:
        """The predictions of the images that could be classified."""
        return [result for result in self if isinstance(result, Prediction)]

    @property
    def failed(self) -> list[UnreadableImage | NonFiniteLogits]:
        """The images without a prediction, each with the reason."""
        return [result for result in self if not isinstance(result, Prediction)]

    def least_certain(self, n: int) -> list[Prediction]:
        """The `n` images with the lowest score, lowest first: label these next.

        Raises:
            RecipeError: the artifact was exported with the head argmax, which gives no scores.
        """
        if any(prediction.top[0].score_percent is None for prediction in self.classified):
            raise RecipeError(
                "The artifact was exported with the head argmax, which gives no scores.\n"
                "  Export again with the head scores."
            )
        return heapq.nsmallest(n, self.classified, key=lambda x: x.top[0].score_percent or 0.0)

    def to_records(self) -> list[dict[str, Any]]:
        """Returns the objects that `kdedge predict --format jsonl` writes, as for a data frame."""
        return [result_values(result, None) for result in self]

    def to_csv(self) -> str:
        """Returns the lines that `kdedge predict --format csv` writes."""
        lines = Lines("csv", top=self._top, min_score=None, tells_none=self._tells_none)
        written = [lines.heading(), *(lines.line(result) for result in self)]
        return "".join(f"{line}\n" for line in written)

    @property
    def table(self) -> Table:
        """One image a row: its classes and scores."""
        header = ["image", "class", "score"]
        for rank in range(2, self._top + 1):
            header += [f"class {rank}", f"score {rank}"]
        rows = []
        for result in self:
            classes = shown_classes(result, None) if isinstance(result, Prediction) else [("-", "")]
            cells = [result.key, *chain.from_iterable(classes)]
            rows.append(cells + [""] * (len(header) - len(cells)))
        return Table("", header, rows)

    @property
    def notes(self) -> list[str]:
        """The reason for each image without a prediction."""
        return [f"{failure.key}: {failure.reason}." for failure in self.failed]


def predict(
    artifact: RunOrArtifact,
    *paths: AnyPath,
    top: int = 1,
    every: int = 1,
    precision: Precision | None = None,
    backend: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
) -> Predictions:
    """Classifies images, folders and videos; a failed image does not stop the others.

    `kdedge.load` keeps the model loaded, and also classifies images in memory.

    Args:
        artifact: an artifact or a run (its newest artifact): the object, folder, or a run's name.
        paths: images, videos, and folders, which are searched with all their subfolders; each a
            path or a list of paths.
        top: classes per image.
        every: take the first and then every Nth frame of a video.
        precision: `fp32`, `fp16` or `int8`. None: an engine that this machine's GPU runs,
            or else the file that `export(cpu=True)` chose on a machine like this, or else float32.
        backend: the runtime, such as `onnxruntime`; None to choose one.
        batch: images per call; None for as many as the artifact takes.
        threads: CPU threads; None for the engine's default.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Returns:
        A result for each image, in order: a `Prediction`, an `UnreadableImage` or a
        `NonFiniteLogits`.

    Raises:
        DataError: a path does not exist, there is no artifact, or no image could be classified.
        RecipeError: no path is given, `top` or `every` is below 1, or the artifact has no file of
            that precision for that backend.
        SetupError: this machine can run no file of the artifact.

    Examples:
        >>> predictions = kdedge.predict("artifacts/01", "new-images", top=2)
        >>> for image in predictions.least_certain(3):
        ...     print(image.key, image.top)
    """
    given_paths = path_list(paths)
    check_at_least(1, top=top, every=every, batch=batch, threads=threads)
    results: list[Result] = []
    with load(
        artifact, precision=precision, backend=backend, threads=threads, root=root
    ) as classifier:
        # After the artifact, whose error says that images come after it
        inputs = open_inputs(given_paths, every=every)
        n_images = len(inputs) if isinstance(inputs, list) else None
        stream = ResultStream(inputs, classifier, top=top, batch=batch)
        with progress("classifying", n_images, unit="images") as advance:
            for number, (_, result) in enumerate(stream, 1):
                results.append(result)
                advance(number)
    stream.check_any_classified()
    n_shown = min(top, len(classifier.artifact.class_names))
    return Predictions(results, top=n_shown, tells_none=classifier.tells_none)


class ResultStream:
    """Yields each image with its result, in order, as soon as it is known.

    Attributes:
        counts: results so far: `classified`, `unreadable` and `unanswered` (logits not finite).
    """

    def __init__(
        self, inputs: InputImages, classifier: Classifier, *, top: int, batch: int | None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._classifier = classifier
        self._items, items = tee(inputs)
        images = ((item.key, item.image) for item in items)
        self._results = classifier.classify_many(images, top=top, batch=batch)
        self._first_failed: UnreadableImage | NonFiniteLogits | None = None

    def __iter__(self) -> Iterator[tuple[InputImage, Result]]:
        """Yields each result once, and counts it when the caller asks for the next."""
        for result, item in zip(self._results, self._items, strict=False):
            yield item, result
            if isinstance(result, Prediction):
                self.counts["classified"] += 1
                continue
            is_unread = isinstance(result, UnreadableImage)
            self.counts["unreadable" if is_unread else "unanswered"] += 1
            self._first_failed = self._first_failed or result

    def check_any_classified(self) -> None:
        """Checks that at least one image was classified.

        Raises:
            DataError: no image was classified; the message says why.
        """
        if self.counts["classified"]:
            return
        failed = self._first_failed
        if failed is None:
            raise DataError(
                "There is no image in standard input or the video.\n  Pipe an image into it, or"
                " play the video to see whether it has frames."
            )
        raise DataError(
            f"None of {images_text(self.counts.total())} could be classified with"
            f" {self._classifier.artifact.path / self._classifier.file.name}.\n  The first is"
            f" {failed.key}: {failed.reason}."
        )
