"""Classifies images, folders and videos with an exported artifact; needs no torch."""

from __future__ import annotations

import contextlib
import heapq
import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from kdedge.api.evaluate import AnyArtifact
from kdedge.errors import DataError, RecipeError, check_at_least, os_reason
from kdedge.inference.lines import (
    Lines,
    NonFiniteLogits,
    Prediction,
    Result,
    UnreadableImage,
    best_name,
    result_values,
)
from kdedge.progress import progress
from kdedge.records.tables import Table, Tabled, images_text

if TYPE_CHECKING:
    from kdedge.data.sources import ImageSource
    from kdedge.inference.classify import Classifier, ImageInput
    from kdedge.runtime.artifact import Precision

log = logging.getLogger(__name__)
_MOST_BYTES = 1 << 29  # of an image on standard input: no photo is larger


@dataclass(frozen=True)
class ImageToClassify:
    """One image.

    Attributes:
        key: its name in results.
        name: file name to save it under.
        read: returns it or raises UnusableImage; reads an image file anew at each call.
        label: its class, as a position in the names that labels were read with; None if it has
            none.
    """

    key: str
    name: str
    read: Callable[[], ImageInput]
    label: int | None = None


@dataclass(frozen=True)
class ImagesToClassify:
    """The images to classify.

    Attributes:
        items: the images; frames are decoded one at a time.
        keys: all keys; None if there are frames, whose number is unknown.
    """

    items: Iterator[ImageToClassify]
    keys: Sequence[str] | None

    @property
    def n_images(self) -> int | None:
        """Number of images; None if unknown."""
        return None if self.keys is None else len(self.keys)

    def without_first(self, n_images: int) -> ImagesToClassify:
        """Returns the inputs without the first images; only with all keys known."""
        assert self.keys is not None
        return replace(self, items=islice(self.items, n_images, None), keys=self.keys[n_images:])


AnyPath = str | Path | Iterable[str | Path]
"""A path, or several."""


def path_list(paths: Iterable[AnyPath]) -> tuple[str, ...]:
    """The paths of arguments, each of which is a path or a list of paths."""
    lists = [[argument] if isinstance(argument, str | Path) else argument for argument in paths]
    return tuple(str(path) for listed in lists for path in listed)


def open_inputs(
    paths: Sequence[str], *, every: int = 1, label_names: Sequence[str] | None = None
) -> ImagesToClassify:
    """Opens the images to classify; lists folders, shards and CSV lists at once.

    Args:
        paths: files and folders, or - alone for standard input.
        every: take the first and then every Nth frame of a video.
        label_names: the class names to read labels with: of a folder's subfolders, of a CSV list,
            and of a shard's cls members. None reads no labels.

    Raises:
        DataError: a file or a folder does not exist, or a label is none of the names.
        MissingPackage: a video is named and PyAV is not installed.
    """
    if tuple(paths) != ("-",):
        return _listed(paths, every, label_names)
    data = sys.stdin.buffer.read(_MOST_BYTES)
    images = [ImageToClassify("stdin", "stdin.jpg", _giver(data))] if data else []
    return ImagesToClassify(iter(images), None)


def read_item(item: ImageToClassify) -> ImageInput:
    """An item's image, or why it cannot be read."""
    from kdedge.runtime.preprocess import UnusableImage

    try:
        return item.read()
    except UnusableImage as error:
        return error


def _giver(image: ImageInput) -> Callable[[], ImageInput]:
    return lambda: image


def _listed(
    paths: Sequence[str], every: int, label_names: Sequence[str] | None
) -> ImagesToClassify:
    """The images of files, folders and videos, in the order given."""
    from kdedge.data.sources import csv_list, read_file
    from kdedge.runtime.video import import_pyav, is_video

    labels: dict[str, Any] = {"class_names": label_names or (), "labeled": label_names is not None}
    parts: list[Sequence[ImageToClassify] | Iterator[ImageToClassify]] = []
    has_video = False
    for name in paths:
        path = Path(name)
        try:
            is_folder, is_there = path.is_dir(), path.exists()
        except OSError as error:
            raise DataError(
                f"{name} cannot be read: {os_reason(error)}.\n"
                "  Name a file or folder that you may read."
            ) from error
        if is_folder:
            parts.append(_folder(path, labels))
        elif not is_there:
            raise DataError(f"{name} does not exist.\n  Name an image, or a folder of images.")
        elif path.suffix == ".tar":
            from kdedge.data.sources import webdataset  # reads recipes, too

            shard = webdataset.open_source(str(path.absolute()), **labels)
            parts.append(_items(shard, path.parent))
        elif path.suffix.lower() == ".csv":
            parts.append(_items(csv_list.open_source(path, **labels), path.parent))
        elif is_video(path):
            import_pyav()  # fail before the model is loaded
            has_video = True
            parts.append(_frames(path, every))
        else:
            parts.append([ImageToClassify(name, path.name, partial(read_file, path.absolute()))])
    items = (item for part in parts for item in part)
    if has_video:
        return ImagesToClassify(items, None)
    listed = list(items)
    return ImagesToClassify(iter(listed), [item.key for item in listed])


def _folder(path: Path, labels: dict[str, Any]) -> list[ImageToClassify]:
    """The images of a folder; warns of videos and pictures that are skipped."""
    from kdedge.data.sources.folder import has_pictures, left_out_text, open_source
    from kdedge.runtime.video import is_video

    source = open_source(path, **labels)
    has_videos = any(is_video(Path(f"_{kind}")) for kind in source.left_out)
    if has_videos or has_pictures(source.left_out):
        remedy = "\n  To classify a video, give its path." if has_videos else ""
        log.warning("%s: skipped files: %s.%s", path, left_out_text(source.left_out), remedy)
    return _items(source, path)


def _items(source: ImageSource, above: Path) -> list[ImageToClassify]:
    return [
        ImageToClassify(
            str(above / item.key),
            item.key.replace("/", "_"),
            partial(source.read, i),
            item.label,
        )
        for i, item in enumerate(source.items)
    ]


def _frames(path: Path, every: int) -> Iterator[ImageToClassify]:
    """A video's frames; if it is damaged, the last item's `read` raises the reason."""
    from kdedge.runtime.preprocess import UnusableImage
    from kdedge.runtime.video import frames_of_video

    try:
        for number, seconds, image in frames_of_video(path, every=every):
            time = "" if seconds is None else f"@{seconds:.3f}s"
            name = f"{path.stem}-{number:06d}.jpg"
            yield ImageToClassify(f"{path}:{number}{time}", name, _giver(image))
    except UnusableImage as error:
        yield ImageToClassify(str(path), path.name, _giver(error))


class Predictions(Tabled, Sequence[Result]):
    """Results for images, in their order; printed and shown in a notebook as a table."""

    def __init__(self, results: Sequence[Result], *, top: int, tells_none: bool = False) -> None:
        self._results, self._top, self._tells_none = tuple(results), top, tells_none

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...

    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    @property
    def classified(self) -> list[Prediction]:
        """The predictions of the images that could be classified."""
        return [result for result in self._results if isinstance(result, Prediction)]

    @property
    def failed(self) -> list[UnreadableImage | NonFiniteLogits]:
        """The images without a prediction, each with the reason."""
        return [result for result in self._results if not isinstance(result, Prediction)]

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
        return [result_values(result, None) for result in self._results]

    def to_csv(self) -> str:
        """Returns the lines that `kdedge predict --format csv` writes."""
        lines = Lines("csv", top=self._top, min_score=None, tells_none=self._tells_none)
        written = [lines.heading(), *(lines.line(result) for result in self._results)]
        return "".join(f"{line}\n" for line in written)

    @property
    def table(self) -> Table:
        """One image a row: its classes and scores."""
        header = ["image", "class", "score"]
        for rank in range(2, self._top + 1):
            header += [f"class {rank}", f"score {rank}"]
        return header, [self._row(result) for result in self._results]

    @property
    def notes(self) -> list[str]:
        """Why images have no prediction."""
        return [f"{failure.key}: {failure.reason}." for failure in self.failed]

    def _row(self, result: Result) -> list[str]:
        cells = [result.key]
        if isinstance(result, Prediction):
            for name, score in result.top:
                cells += [name, "-" if score is None else f"{score:.2f} %"]
            cells[1] = best_name(result, None) or "-"
        else:
            cells.append("-")
        return cells + [""] * (1 + 2 * self._top - len(cells))


def predict(
    source: AnyArtifact,
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
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        paths: images, videos, and folders, which are searched with all their subfolders; each a
            path or a list of paths.
        top: classes per image.
        every: take the first and then every Nth frame of a video.
        precision: `fp32`, `bf16`, `fp16` or `int8`. None: an engine that this machine's GPU runs,
            or else the file that `export(cpu=True)` chose on a machine like this, or else float32.
        backend: the runtime, such as `onnxruntime`; None to choose one.
        batch: images per call; None for as many as the artifact takes.
        threads: CPU threads; None for the engine's default.
        root: folder of all runs; None for the one of KDEDGE_RUNS, or `runs`.

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
    named = path_list(paths)
    if not named:
        raise RecipeError("No path is given.\n  Name images, videos or folders.")
    check_at_least(1, top=top, every=every, batch=batch, threads=threads)
    inputs = open_inputs(named, every=every)
    chosen = opened(source, precision=precision, backend=backend, threads=threads, root=root)
    with chosen as classifier:
        stream = ResultStream(inputs, classifier, top=top, batch=batch)
        with progress("classifying", inputs.n_images, unit="images") as advance:
            results = []
            for result, _ in stream:
                results.append(result)
                advance(len(results))
        stream.check_any()
    n_shown = min(top, len(classifier.artifact.class_names))
    return Predictions(results, top=n_shown, tells_none=classifier.tells_none)


def opened(
    source: AnyArtifact,
    *,
    precision: Precision | None = None,
    backend: str | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
) -> contextlib.closing[Classifier]:
    """Context with the loaded model of an artifact, or of a run's newest one; or a file of one."""
    from kdedge.api.model import open_classifier

    return contextlib.closing(
        open_classifier(source, precision=precision, backend=backend, threads=threads, root=root)
    )


class ResultStream:
    """Yields each image's result with the image, in order, as soon as it is known.

    Attributes:
        counts: results so far: `classified`, `unreadable` and `unanswered` (logits not finite).
    """

    def __init__(
        self, inputs: ImagesToClassify, classifier: Classifier, *, top: int, batch: int | None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._inputs, self._classifier = inputs, classifier
        self._top, self._batch = top, batch
        self._first_failed: UnreadableImage | NonFiniteLogits | None = None

    def __iter__(self) -> Iterator[tuple[Result, ImageToClassify]]:
        """Yields each result once, and counts it when the caller asks for the next."""
        waiting: deque[ImageToClassify] = deque()

        def images() -> Iterator[tuple[str, ImageInput]]:
            for item in self._inputs.items:
                waiting.append(item)
                yield item.key, read_item(item)

        for result in self._classifier.classify_many(images(), top=self._top, batch=self._batch):
            yield result, waiting.popleft()
            self._count(result)

    def _count(self, result: Result) -> None:
        if isinstance(result, Prediction):
            self.counts["classified"] += 1
            return
        is_unread = isinstance(result, UnreadableImage)
        self.counts["unreadable" if is_unread else "unanswered"] += 1
        self._first_failed = self._first_failed or result

    def check_any(self) -> None:
        """Checks that at least one image was classified.

        Raises:
            DataError: none was; the message says why.
        """
        if self.counts["classified"]:
            return
        first = self._first_failed
        if first is None:
            raise DataError(
                "There is no image in standard input or the video.\n  Pipe an image into it, or"
                " play the video to see whether it has frames."
            )
        file = self._classifier.artifact.path / self._classifier.file.name
        if not self.counts["unanswered"]:
            raise DataError(
                f"None of {images_text(self.counts.total())} could be classified with"
                f" {file.parent}.\n  The first is {first.key}: {first.reason}."
            )
        is_fp32 = self._classifier.file.precision == "fp32"
        remedy = "Export the run again" if is_fp32 else "Use the float32 file: --precision fp32"
        raise DataError(
            f"{file} gives NaN or infinity for {images_text(self.counts['unanswered'])}, and no"
            f" image was classified.\n  {remedy}."
        )
