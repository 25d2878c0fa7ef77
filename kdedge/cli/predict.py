"""Classify images with an exported artifact; needs no torch."""

from __future__ import annotations

import bisect
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdedge.api.predict import (
    ImagesToClassify,
    ImageToClassify,
    ResultStream,
    open_inputs,
    opened,
    read_item,
)
from kdedge.cli._options import backend_option, precision_option, runs_option, threads_value_option
from kdedge.cli._output import FiniteRange
from kdedge.errors import KdedgeError
from kdedge.files import already_exists, explain_os_error, explained, held, printable, sha256_json
from kdedge.inference.lines import (
    FORMATS,
    Lines,
    Prediction,
    Result,
    answer_lines,
    best_name,
    column_widths,
)
from kdedge.inference.unfinished import UnfinishedLines
from kdedge.progress import progress
from kdedge.records.tables import images_text

if TYPE_CHECKING:
    from kdedge.inference.classify import Classifier
    from kdedge.runtime.artifact import Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Format:
    """Output format of results.

    Attributes:
        kind: one of `FORMATS`.
        top: classes per image.
        min_score: percent below which the best class is not named.
        output: the file; None for stdout.
        save: folder for the pictures; None saves none.
        uncertain: number of least certain predictions to give; None gives all.
        resume: continue the file.
    """

    kind: str
    top: int
    min_score: float | None
    output: Path | None
    save: Path | None
    uncertain: int | None
    resume: bool

    @property
    def is_table(self) -> bool:
        """Whether the lines go to a file that can be continued."""
        return self.output is not None and self.kind in {"csv", "jsonl"} and self.save is None


@click.command("predict")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Take the first and then every Nth frame of a video.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes per image."
)
@click.option(
    "--min-score",
    type=FiniteRange(0, 100),
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
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the lines to this new file instead of stdout, each as soon as it is known. A file"
    " without lines is not kept.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Save each picture with its prediction below it in this new or empty folder.",
)
@click.option(
    "--uncertain",
    type=click.IntRange(min=1),
    metavar="N",
    help="Give only the N images with the lowest scores, lowest first: label these next. --save"
    " then saves them without predictions.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the file of --output that an interrupted call of the same command began.",
)
@precision_option
@backend_option
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images per call. [default: as many as the artifact takes]",
)
@threads_value_option
@runs_option
def command(
    artifact: Path,
    paths: tuple[str, ...],
    every: int,
    precision: Precision | None,
    backend: str | None,
    batch: int | None,
    threads: int | None,
    root: Path,
    **options: Any,
) -> None:
    """Classify images with ARTIFACT, the folder that `kdedge export` wrote, or a run with one.

    PATH is an image, a video (needs kdedge[video]), a WebDataset shard (.tar), a CSV list, or a
    folder, which is searched with all its subfolders. A video's frames are named
    FILE:NUMBER@SECONDS. With - the command reads an image from standard input.
    Cameras and streams are for `kdedge watch`.

    An artifact that was exported with --none-of-these answers none for an image that looks like
    none of its classes, and gives known_percent in csv and jsonl: the share of the known images
    that look less like them. The scores are those of the classes all the same.

    An image that cannot be read gets a line that says why, and does not stop the others. The exit
    code is 0 if any image was classified and 3 if none was.
    """
    shape = _Format(**options)
    if shape.output is None and sys.stdout is None:  # as by >&-
        raise click.UsageError("Standard output is closed. Name a file with --output.")
    if shape.resume and (not shape.is_table or shape.uncertain is not None):
        raise click.UsageError(
            "--resume continues a file of all images: it needs --output and --format csv or jsonl,"
            " without --save and --uncertain."
        )
    for path in (None if shape.resume else shape.output, shape.save):
        if path is not None and _has_content(path):
            raise already_exists(path)
    _check_named(paths)
    inputs = open_inputs(paths, every=every)
    model = opened(artifact, precision=precision, backend=backend, threads=threads, root=root)
    with model as classifier:
        option = "--min-score" if shape.uncertain is None else "--uncertain"
        needs_scores = shape.min_score is not None or shape.uncertain is not None
        if needs_scores and classifier.artifact.head == "argmax":
            raise click.UsageError(
                f"{option}: {artifact} was exported with --head argmax, which gives no scores."
                " Export again with --head scores."
            )
        unfinished = _unfinished(inputs, classifier, shape)
        log.info("Using %s on %s.", classifier.file.name, classifier.backend.describe())
        if precision is None and backend is None and classifier.file.device != "gpu":
            _say_what_export_names(classifier)
        n_done = 0
        if unfinished is not None and shape.resume and unfinished.output.exists():
            with held(unfinished.output):  # a command that was taken for dead may still write it
                n_done = unfinished.n_done(inputs.keys or ())
            log.info("%s has %s.", shape.output, images_text(n_done))
            inputs = inputs.without_first(n_done)
            if not n_done:
                unfinished.output.unlink()  # at most a heading
        is_shown = shape.output is None and sys.stdout is not None and sys.stdout.isatty()
        names = classifier.artifact.class_names
        lines = Lines(
            shape.kind,
            top=min(shape.top, len(names)),
            min_score=shape.min_score,
            columns=column_widths(inputs.keys or (), names) if is_shown else (0, 0),
            tells_none=classifier.tells_none,
        )
        bar: contextlib.AbstractContextManager[Callable[[int], None]]
        bar = progress("classifying", inputs.n_images, unit="images")
        if is_shown and shape.uncertain is None:  # on one terminal, a bar would mix with the lines
            bar = contextlib.nullcontext(lambda *_: None)
        results = ResultStream(inputs, classifier, top=shape.top, batch=batch)
        until_end = contextlib.nullcontext() if unfinished is None else unfinished.until_end()
        try:
            with bar as advance:
                given = _saved(_chosen(results, shape.uncertain, advance), results.counts, shape)
                texts = (lines.line(result) for result in given)
                heading = None if n_done else lines.heading()
                _write(shape.output, heading, texts, until_end, is_begun=n_done > 0)
        except KeyboardInterrupt:
            _say_counts(results.counts, shape)
            raise
        _say_counts(results.counts, shape)
        if not n_done:
            results.check_any()


def _say_what_export_names(classifier: Classifier) -> None:
    """Logs how to use the file that `export` names for a CPU, if none was chosen on this one."""
    from kdedge.deploy.ship import file_to_ship, predict_flags
    from kdedge.runtime.cpu_choice import choice_here, readable_choices

    artifact = classifier.artifact
    ship = None if choice_here(readable_choices(artifact)) else file_to_ship(artifact, None)
    flags = None if ship is None else predict_flags(artifact, ship.file)
    if ship is not None and flags is not None and ship.file.name != classifier.file.name:
        log.info("For a CPU, export names %s: %s.", ship.file.name, " ".join(flags))


def _unfinished(
    inputs: ImagesToClassify, classifier: Classifier, shape: _Format
) -> UnfinishedLines | None:
    """The file of lines, if the command can be continued; None for a video."""
    output, keys = shape.output, inputs.keys
    if output is None or keys is None or not shape.is_table or shape.uncertain is not None:
        return None
    artifact, file = classifier.artifact, classifier.file
    weights = None if file.data is None else artifact.others[file.data]
    below = classifier.none_below
    model = [file.sha256, weights, list(artifact.class_names)]
    model += [] if below is None else [sha256_json(below.to_dict())]
    options = [shape.kind, shape.top, shape.min_score]
    made_from = sha256_json([*model, *options, list(map(printable, keys))])
    return UnfinishedLines(output, "csv" if shape.kind == "csv" else "jsonl", made_from)


def _check_named(paths: Sequence[str]) -> None:
    if not paths:
        raise click.UsageError("Name images, a folder, or - for standard input.")
    if "" in paths:
        raise click.UsageError(
            "PATH is empty text. Name an image or a folder; . is the current folder."
        )
    if "-" in paths and len(paths) > 1:
        raise click.UsageError("- (standard input) cannot be combined with other paths.")
    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Standard input is a terminal. Pipe an image into it.")


def _has_content(path: Path) -> bool:
    """Whether there is such a file, or a folder that is not empty."""
    with explained(path):  # a name that is too long, a folder that may not be searched
        return any(path.iterdir()) if path.is_dir() else path.exists()


def _chosen(
    results: ResultStream, n_uncertain: int | None, advance: Callable[[int], None]
) -> Iterator[tuple[Result, ImageToClassify]]:
    """All results; with --uncertain, those of failed images, and at the end the least certain."""
    least_certain: list[tuple[Prediction, ImageToClassify]] = []  # lowest score first
    try:
        for number, (result, item) in enumerate(results, 1):
            if n_uncertain is not None and isinstance(result, Prediction):
                bisect.insort(least_certain, (result, item), key=_score)
                del least_certain[n_uncertain:]
            else:
                yield result, item
            advance(number)
    except (KeyboardInterrupt, KdedgeError):  # the least certain ones so far
        yield from least_certain
        raise
    yield from least_certain


def _score(entry: tuple[Prediction, ImageToClassify]) -> float:
    score = entry[0].top[0].score_percent
    assert score is not None  # heads without scores are refused
    return score


def _saved(
    results: Iterator[tuple[Result, ImageToClassify]], counts: Counter[str], shape: _Format
) -> Iterator[Result]:
    """The results, which it counts; saves their pictures."""
    from kdedge.inference.pictures import PictureFolder

    pictures = None if shape.save is None else PictureFolder(shape.save)
    for result, item in results:
        yield result
        if isinstance(result, Prediction):
            counts["none"] += result.is_none
            counts["unsure"] += best_name(result, shape.min_score) is None
            if pictures is not None:
                answer = answer_lines(result, shape.min_score) if shape.uncertain is None else None
                pictures.save(item.name, read_item(item), answer)


def _write(
    output: Path | None,
    heading: str | None,
    lines: Iterator[str],
    until_end: contextlib.AbstractContextManager[None],
    *,
    is_begun: bool,
) -> None:
    """Writes lines to stdout or to a file, each as soon as it is known; without lines, no file.

    The file must be new, unless it `is_begun`: then the lines are appended.
    """
    first = next(lines, None)
    if first is None:
        return
    lines = chain([] if heading is None else [heading], [first], lines)
    if output is None:
        for line in lines:
            click.echo(line)
        return
    try:
        file = output.open("a" if is_begun else "x", encoding="utf-8", newline="")
    except FileExistsError as error:  # since it was checked: another command writes it
        raise already_exists(output) from error
    except OSError as error:
        raise explain_os_error(error, output) from error
    with file, held(output), until_end:
        for line in lines:
            try:
                click.echo(line, file=file)
            except OSError as error:
                with contextlib.suppress(OSError):  # closing tries the same line again
                    file.close()
                raise explain_os_error(error, output) from error


def _say_counts(counts: Counter[str], shape: _Format) -> None:
    """Logs the counts of results, and the files written."""
    n_images = counts["classified"] + counts["unreadable"] + counts["unanswered"]
    if not n_images:
        return
    parts = [f"{counts['classified']:,} classified"]
    if counts["none"]:
        parts.append(f"{counts['none']:,} of them none of the classes")
    if counts["unsure"]:
        parts.append(f"{counts['unsure']:,} of them below {shape.min_score:g} %")
    if counts["unreadable"]:
        parts.append(f"{counts['unreadable']:,} unreadable")
    if counts["unanswered"]:
        parts.append(f"{counts['unanswered']:,} without finite logits")
    wrote = [str(path) for path in (shape.output, shape.save) if path and _has_content(path)]
    written = f"\nWrote {' and '.join(wrote)}" if wrote else ""
    log.info("%s: %s%s", images_text(n_images), ", ".join(parts), written)
