"""Classifies images, folders and videos with an exported artifact; needs no torch."""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable
from itertools import chain, tee
from pathlib import Path

from kdedge.api.inputs import AnyPath, InputImage, InputImages, open_inputs, path_list
from kdedge.api.model import load
from kdedge.errors import DataError, check_at_least
from kdedge.inference.classify import Classifier
from kdedge.inference.lines import Lines, shown_classes
from kdedge.inference.results import NonFiniteLogits, Prediction, Result, no_scores
from kdedge.progress import progress
from kdedge.records.tables import Table, Tabled, images_text
from kdedge.runs.find import RunOrArtifact
from kdedge.runtime.artifact import Precision
from kdedge.runtime.preprocess import UnreadableImage


class Predictions(Tabled, list[Result]):
    """Results for images, in their order; printed and shown in a notebook as a table."""

    def __init__(self, results: Iterable[Result], *, top: int, tells_none: bool = False) -> None:
        super().__init__(results)
        self._top = top
        self._tells_none = tells_none

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
            raise no_scores("least_certain", "the artifact")
        return heapq.nsmallest(n, self.classified, key=lambda x: x.top[0].score_percent or 0.0)

    def to_csv(self) -> str:
        """Returns the lines that `kdedge predict --format csv` writes."""
        lines = Lines("csv", top=self._top, min_score=None, tells_none=self._tells_none)
        written = [lines.heading(), *(lines.line(result) for result in self)]
        return "".join(f"{line}\n" for line in written)

    @property
    def table(self) -> Table:
        """A row for each image: its classes and scores."""
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
        threads: CPU threads; None for the runtime's default.
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
    with load(
        artifact, precision=precision, backend=backend, threads=threads, root=root
    ) as classifier:
        # After the artifact, whose error says that images come after it
        inputs = open_inputs(given_paths, every=every)
        results = [result for _, result in results_of(inputs, classifier, top=top, batch=batch)]
    n_shown = min(top, len(classifier.artifact.class_names))
    return Predictions(results, top=n_shown, tells_none=classifier.tells_none)


def results_of(
    inputs: InputImages, classifier: Classifier, *, top: int, batch: int | None
) -> Generator[tuple[InputImage, Result], None, None]:
    """Yields each image with its result, in order, as soon as it is known; shows the progress.

    Args:
        inputs: the images.
        classifier: the loaded artifact.
        top: classes per image.
        batch: images per call; None for as many as the artifact takes.

    Raises:
        DataError: at the end, if no image was classified; the message says why.
        RecipeError: the artifact does not take batches of that size.
    """
    items, same_items = tee(inputs)
    images = ((item.key, item.image) for item in same_items)
    results = classifier.classify_many(images, top=top, batch=batch)
    n_images = len(inputs) if isinstance(inputs, list) else None
    n_done = n_classified = 0
    first_failed: UnreadableImage | NonFiniteLogits | None = None
    with progress("classifying", n_images, unit="images") as advance:
        for n_done, (result, item) in enumerate(zip(results, items, strict=False), 1):
            yield item, result
            if isinstance(result, Prediction):
                n_classified += 1
            else:
                first_failed = first_failed or result
            advance(n_done)
    if n_done == 0:
        raise DataError(
            "There is no image in standard input or the video.\n  Pipe an image into it, or"
            " play the video to see whether it has frames."
        )
    if n_classified == 0 and first_failed is not None:
        raise DataError(
            f"None of {images_text(n_done)} could be classified with"
            f" {classifier.artifact.path / classifier.file.name}.\n  The first is"
            f" {first_failed.key}: {first_failed.reason}."
        )
