"""Classify images with an exported artifact; needs no torch."""

from __future__ import annotations

import bisect
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from kdedge.api.inputs import InputImage, open_inputs, path_list
from kdedge.api.model import load
from kdedge.api.predict import results_of
from kdedge.cli.options import artifact_options, count_option, file_option, folder_option
from kdedge.errors import DataError, explaining_writes
from kdedge.files import already_exists, new_file
from kdedge.inference.lines import FORMATS, NO_COLUMNS, Lines, column_widths, shown_classes
from kdedge.inference.results import NonFiniteLogits, Prediction, Result, best_name, no_scores
from kdedge.inference.saved_images import SavedImages
from kdedge.progress import progress_to
from kdedge.records.tables import images_text
from kdedge.runtime.preprocess import UnreadableImage

log = logging.getLogger(__name__)


@click.command("predict")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@count_option("--every", default=1, help="Take the first and then every Nth frame of a video.")
@count_option("--top", default=1, help="Classes per image.")
@click.option(
    "--min-score",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Do not name classes with a lower score: - in text, empty in csv, null in jsonl."
    " The score itself is still given.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="csv has a heading; jsonl is one JSON object per line. In both, `error` says why an image"
    " has no prediction.",
)
@click.option("--json", "kind", flag_value="jsonl", help="The same as --format jsonl.")
@file_option(
    "--output",
    help="Write the lines to this new file instead of stdout, each as soon as it is known. A file"
    " without lines is not kept.",
)
@folder_option(
    "--save",
    metavar="DIR",
    help="Save each image with its prediction below it in this new or empty folder.",
)
@count_option(
    "--uncertain",
    help="Give only the N images with the lowest scores, lowest first: label these next. --save"
    " then saves them without predictions.",
)
@count_option("--batch", help="Images per call. [default: as many as the artifact takes]")
@artifact_options
def command(
    artifact: Path,
    paths: tuple[str, ...],
    every: int,
    top: int,
    min_score: float | None,
    kind: str,
    output: Path | None,
    save: Path | None,
    uncertain: int | None,
    batch: int | None,
    **options: Any,
) -> None:
    """Classify images with ARTIFACT, the folder that `kdedge export` wrote, or a run with one.

    PATH is an image, a video (needs kdedge[video]), a WebDataset shard (.tar), a CSV list, or a
    folder, which is searched with all its subfolders. A video's frames are named
    FILE:NUMBER@SECONDS. With - the command reads an image from standard input.
    Cameras and streams are for `kdedge watch`.

    An artifact that was exported with --none-of-these predicts none for an image that looks like
    none of its classes, and gives known_percent in csv and jsonl: the share of the known images
    that look less like them. For none, there is no score.

    An image that cannot be read gets a line that says why, and does not stop the others. The exit
    code is 0 if any image was classified and 3 if none was.
    """
    if output is None and sys.stdout is None:  # closed with >&-
        raise click.UsageError("Standard output is closed. Name a file with --output.")
    for path in (output, save):
        if path is not None and _has_content(path):
            raise already_exists(path)
    paths = path_list(paths)
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(load(artifact, **options))
        # After the artifact, whose error says that images come after it
        inputs = open_inputs(paths, every=every)
        needs_scores = min_score is not None or uncertain is not None
        if needs_scores and classifier.artifact.head == "argmax":
            raise no_scores("--min-score" if uncertain is None else "--uncertain", artifact)
        path = classifier.artifact.path / classifier.file.name
        log.info(f"Using {path} on {classifier.backend.describe()}.")
        write = click.echo if output is None else stack.enter_context(_new_lines(output))
        is_shown = output is None and sys.stdout is not None and sys.stdout.isatty()
        if is_shown and uncertain is None:  # on one terminal, a bar would mix with the lines
            stack.enter_context(progress_to(None))
        names = classifier.artifact.class_names
        keys = [item.key for item in inputs] if isinstance(inputs, list) else None
        lines = Lines(
            kind,
            top=min(top, len(names)),
            min_score=min_score,
            columns=column_widths(keys or (), names) if is_shown else NO_COLUMNS,
            tells_none=classifier.tells_none,
        )
        saved = None if save is None else SavedImages(save)
        writer = _ResultWriter(lines, write, saved, uncertain)
        results = results_of(inputs, classifier, top=top, batch=batch)
        try:
            with contextlib.closing(results):  # its progress bar ends before the counts are logged
                writer.write_all(results)
        except (KeyboardInterrupt, DataError):  # also if no image was classified
            _log_counts(writer, output, save)
            raise
        _log_counts(writer, output, save)


class _Uncertain(NamedTuple):
    """A prediction among the least certain ones; sorted by its score, then by its number."""

    score_percent: float
    number: int
    item: InputImage
    prediction: Prediction


@dataclass
class _ResultWriter:
    """Writes a line and an image for each result: at once, or the least certain ones at the end.

    Attributes:
        lines: formats the results.
        write: writes a line.
        saved: where images are saved; None if they are not.
        n_least_certain: number of predictions to write; None for all.
        counts: results so far of each kind.
        n_none: images so far that show none of the classes.
        n_unsure: images so far whose class is not named.
    """

    lines: Lines
    write: Callable[[str], None]
    saved: SavedImages | None
    n_least_certain: int | None
    counts: Counter[type[Result]] = field(default_factory=Counter)
    n_none: int = 0
    n_unsure: int = 0
    _is_begun: bool = False

    def write_all(self, results: Iterable[tuple[InputImage, Result]]) -> None:
        """Writes the result of each image."""
        least_certain: list[_Uncertain] = []
        try:
            for number, (item, result) in enumerate(results):
                if isinstance(result, Prediction):
                    if result.is_none:
                        self.n_none += 1
                    if best_name(result, self.lines.min_score) is None:
                        self.n_unsure += 1
                if self.n_least_certain is not None and isinstance(result, Prediction):
                    score = result.top[0].score_percent or 0
                    bisect.insort(least_certain, _Uncertain(score, number, item, result))
                    del least_certain[self.n_least_certain :]
                else:
                    self._write(item, result)
                self.counts[type(result)] += 1
        finally:  # after Ctrl-C, too: the least certain images so far
            for one in least_certain:
                self._write(one.item, one.prediction)

    def _write(self, item: InputImage, result: Result) -> None:
        heading = None if self._is_begun else self.lines.heading()
        if heading is not None:
            self.write(heading)
        self._is_begun = True
        self.write(self.lines.line(result))
        if self.saved is not None and isinstance(result, Prediction):
            is_named = self.n_least_certain is None  # the least certain ones are to be labeled
            shown = shown_classes(result, self.lines.min_score) if is_named else None
            self.saved.save(item.name, item.image, shown)


@contextlib.contextmanager
def _new_lines(path: Path) -> Iterator[Callable[[str], None]]:
    """Context with a function that writes each line to a new file at once; keeps no empty file."""
    with new_file(path):
        with explaining_writes(path):
            file = path.open("ab", buffering=0)

        def write(line: str) -> None:
            data = f"{line}\n".encode()
            with explaining_writes(path):
                while data:
                    data = data[file.write(data) :]

        with file:
            yield write


def _has_content(path: Path) -> bool:
    """Whether the path is a file, or a folder that is not empty."""
    with explaining_writes(path):  # a name that is too long, or a folder without permission
        return any(path.iterdir()) if path.is_dir() else path.exists()


def _log_counts(writer: _ResultWriter, output: Path | None, save: Path | None) -> None:
    """Logs the number of results of each kind, and the files written."""
    counts = writer.counts
    if not counts:
        return
    parts = [f"{counts[Prediction]:,} classified"]
    if writer.n_none:
        parts.append(f"{writer.n_none:,} of them none of the classes")
    if writer.n_unsure:
        parts.append(f"{writer.n_unsure:,} of them below {writer.lines.min_score:g} %")
    if counts[UnreadableImage]:
        parts.append(f"{counts[UnreadableImage]:,} unreadable")
    if counts[NonFiniteLogits]:
        parts.append(f"{counts[NonFiniteLogits]:,} without finite logits")
    wrote = [str(path) for path in (output, save) if path and _has_content(path)]
    written = f"\nWrote {' and '.join(wrote)}" if wrote else ""
    log.info(f"{images_text(counts.total())}: {', '.join(parts)}{written}")
