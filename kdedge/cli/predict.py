"""Classify images with an exported artifact; needs no torch."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdedge.api.inputs import Inputs, Item, Wanted, open_inputs, read_item
from kdedge.cli._options import options_as, threads_value_option, use_threads
from kdedge.cli._output import FiniteRange
from kdedge.cli._predictions import FORMATS, answer_lines, column_widths, lines_as, named
from kdedge.errors import DataError, KdedgeError
from kdedge.files import explain_os_error
from kdedge.inference.results import NonFiniteLogits, Prediction, Result, UnreadableImage
from kdedge.progress import progress, working
from kdedge.targets.registry import list_backends, list_targets

if TYPE_CHECKING:
    from kdedge.inference.classify import Classifier, ImageInput
    from kdedge.runtime.artifact import Precision

_LOG = logging.getLogger(__name__)


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
    """

    kind: str
    top: int
    min_score: float | None
    output: Path | None
    save: Path | None
    uncertain: int | None


@dataclass(frozen=True)
class _Engine:
    """The artifact's file to use, and how to run it."""

    precision: Precision | None
    backend: str | None
    batch: int | None
    threads: int | None


def _precisions() -> list[str]:
    """The precisions that a backend runs."""
    targets = [target for target in list_targets() if target.backend is not None]
    return sorted({precision for target in targets for precision in target.precisions})


def _backend_names() -> str:
    *names, last = list_backends()
    return f"{', '.join(names)} or {last}"


@click.command("predict")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--camera", type=click.IntRange(min=0), metavar="N", help="Read camera N (/dev/videoN)."
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Take the first and then every Nth frame of a video, a stream or a camera.",
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
    help="csv has a heading; jsonl has one JSON object per line. In both, `error` says why an image"
    " has no prediction.",
)
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
    "--precision",
    type=click.Choice(_precisions()),
    help="Precision of the file to use. int8, and files that missed their gates, are used only"
    " when asked for.",
)
@click.option(
    "--backend",
    metavar="NAME",
    help=f"{_backend_names()}. [default: one that fits]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images per call. [default: as many as the artifact takes; 1 for - and cameras]",
)
@threads_value_option
@options_as(Wanted, "wanted")
@options_as(_Format, "shape")
@options_as(_Engine, "engine")
def command(artifact: Path, wanted: Wanted, shape: _Format, engine: _Engine) -> None:
    """Classify images with ARTIFACT, the folder that `kdedge export` wrote.

    PATH is an image, a video (needs kdedge[video]), or a folder, which is searched with all its
    subfolders. A video's frames are named FILE:NUMBER@SECONDS. With - the command reads standard
    input: one image, or a stream of JPEGs as `ffmpeg -i VIDEO -f image2pipe -c:v mjpeg -` writes
    it. Each is classified as it arrives.

    An image that cannot be read gets a line that says why, and does not stop the others. The exit
    code is 0 if any image was classified and 3 if none was.
    """
    from kdedge.inference.classify import Classifier

    if shape.output is None and sys.stdout is None:  # as by >&-
        raise click.UsageError("Standard output is closed. Name a file with --output.")
    _check_new(shape.output)
    _check_new(shape.save)
    if shape.uncertain is not None and wanted.camera is not None:
        raise click.UsageError(
            "--uncertain needs all images first, and --camera never ends. Record a video and"
            " name it."
        )
    use_threads(engine.threads)
    _check_named(wanted.paths, wanted.camera)
    inputs = open_inputs(wanted)
    with working(f"loading {artifact}"):
        classifier = Classifier.load(
            artifact,
            precision=engine.precision,
            backend=engine.backend,
            n_threads=engine.threads,
        )
    try:
        option = "--min-score" if shape.uncertain is None else "--uncertain"
        needs_scores = shape.min_score is not None or shape.uncertain is not None
        if needs_scores and classifier.artifact.head == "argmax":
            raise click.UsageError(
                f"{option}: {artifact} was exported with --head argmax, which gives no scores."
                " Export again with --head scores."
            )
        counts = _write_all(inputs, classifier, shape, size=engine.batch)
        if not counts["classified"] + counts["unsure"]:
            raise _nothing_classified(counts, classifier)
    finally:
        classifier.backend.close()


def _check_named(paths: Sequence[str], camera: int | None) -> None:
    if camera is not None and paths:
        raise click.UsageError("--camera and PATH exclude each other: give only one of them.")
    if camera is None and not paths:
        raise click.UsageError("Name images, a folder, - for standard input, or --camera N.")
    if "" in paths:
        raise click.UsageError(
            "PATH is empty text. Name an image or a folder; . is the current folder."
        )
    if "-" in paths and len(paths) > 1:
        raise click.UsageError("- (standard input) cannot be combined with other paths.")
    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Standard input is a terminal. Pipe an image into it.")


def _check_new(path: Path | None) -> None:
    """Checks that a result overwrites nothing: the file is new, or the folder new or empty."""
    if path is None:
        return
    try:
        is_there = any(path.iterdir()) if path.is_dir() else path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise explain_os_error(error, path) from error
    if is_there:
        raise click.UsageError(f"{path} exists, and nothing is overwritten. Name another one.")


def _write_all(
    inputs: Inputs, classifier: Classifier, shape: _Format, *, size: int | None
) -> Counter[str]:
    """Writes a line for each result as soon as it is known; counts the kinds of results."""
    from kdedge.inference.pictures import PictureFolder
    from kdedge.inference.uncertain import least_certain

    output, min_score = shape.output, shape.min_score
    is_shown = output is None and sys.stdout is not None and sys.stdout.isatty()
    names = classifier.artifact.class_names
    lines = lines_as(
        shape.kind,
        top=min(shape.top, len(names)),
        min_score=min_score,
        columns=column_widths(inputs.keys or (), names) if is_shown else (0, 0),
    )
    pictures = None if shape.save is None else PictureFolder(shape.save)
    # On one terminal, a bar would mix with the lines
    has_bar = not inputs.is_live and (not is_shown or shape.uncertain is not None)
    counts: Counter[str] = Counter()
    try:
        with (
            _bar(inputs.keys, is_shown=has_bar) as advance,
            _opened(output, lines.heading()) as write,
        ):
            found = _classified(inputs, classifier, shape, size, counts, advance)
            if shape.uncertain is not None:
                found = least_certain(found, shape.uncertain)
            for result, item in found:
                write(lines.line(result))
                if pictures is not None and isinstance(result, Prediction):
                    answer = answer_lines(result, min_score) if shape.uncertain is None else None
                    pictures.save(item.name, read_item(item), answer)
    except (KeyboardInterrupt, KdedgeError):
        if counts:
            _LOG.info(_summary(counts, classifier, shape))
        raise
    if counts:
        _LOG.info(_summary(counts, classifier, shape))
    return counts


def _classified(
    inputs: Inputs,
    classifier: Classifier,
    shape: _Format,
    size: int | None,
    counts: Counter[str],
    advance: Callable[[int], None],
) -> Iterator[tuple[Result, Item]]:
    """Yields each result with its image, and counts it when the caller asks for the next."""
    waiting: deque[Item] = deque()

    def images() -> Iterator[tuple[str, ImageInput]]:
        for item in inputs.items:
            waiting.append(item)
            yield item.key, read_item(item)

    batch = size or (1 if inputs.is_live else None)
    for result in classifier.classify_many(images(), top=shape.top, batch=batch):
        yield result, waiting.popleft()
        counts[_kind(result, shape.min_score)] += 1
        advance(counts.total())


@contextlib.contextmanager
def _bar(keys: Sequence[str] | None, *, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """Context with a function that takes the number of finished images."""
    if not is_shown:
        yield lambda done: None
        return
    total = None if keys is None else len(keys)
    with progress("classifying", total, unit="images") as advance:
        yield advance


def _kind(result: Result, min_score: float | None) -> str:
    if isinstance(result, UnreadableImage):
        return "unreadable"
    if isinstance(result, NonFiniteLogits):
        return "unanswered"
    return "classified" if named(result.top[0], min_score) else "unsure"


@contextlib.contextmanager
def _opened(output: Path | None, heading: str | None) -> Iterator[Callable[[str], None]]:
    """Context with a function that writes one line to stdout or to a new file, below its heading.

    The file keeps its lines whatever happens; a file without lines is deleted.
    """
    if output is None:
        if heading is not None:
            click.echo(heading)
        yield click.echo
        return
    try:
        file = output.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise explain_os_error(error, output) from error
    n_written = 0

    def write(line: str) -> None:
        nonlocal n_written
        try:
            if heading is not None and not n_written:
                click.echo(heading, file=file)
            click.echo(line, file=file)
        except OSError as error:
            with contextlib.suppress(OSError):  # closing tries the same line again
                file.close()
            raise explain_os_error(error, output) from error
        n_written += 1

    try:
        with file:
            yield write
    finally:
        if not n_written:
            output.unlink(missing_ok=True)


def _summary(counts: Counter[str], classifier: Classifier, shape: _Format) -> str:
    """The counts of results, the model file, and the files written."""
    parts = [f"{counts['classified'] + counts['unsure']:,} classified"]
    if counts["unsure"]:
        parts.append(f"{counts['unsure']:,} of them below {shape.min_score:g} %")
    if counts["unreadable"]:
        parts.append(f"{counts['unreadable']:,} unreadable")
    if counts["unanswered"]:
        parts.append(f"{counts['unanswered']:,} without finite logits")
    what = f"{classifier.file.name} on {classifier.backend.describe()}"
    wrote = [str(path) for path in (shape.output, shape.save) if path is not None and path.exists()]
    written = f"\nWrote {' and '.join(wrote)}" if wrote else ""
    return f"{_images(counts.total())}: {', '.join(parts)}; {what}{written}"


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _nothing_classified(counts: Counter[str], classifier: Classifier) -> DataError:
    if not counts:
        return DataError(
            "Standard input has no image.\n"
            "  Pipe an image into it, or JPEGs one after the other"
            " (ffmpeg -i VIDEO -f image2pipe -c:v mjpeg -)."
        )
    file = classifier.artifact.path / classifier.file.name
    if not counts["unanswered"]:
        return DataError(
            f"None of {_images(counts.total())} could be classified with {file.parent}.\n"
            "  The lines above say why, one for each image or video."
        )
    is_fp32 = classifier.file.precision == "fp32"
    remedy = "Export the run again" if is_fp32 else "Use the float32 file: --precision fp32"
    return DataError(
        f"{file} gives NaN or infinity for {_images(counts['unanswered'])}, and no image was"
        f" classified.\n  {remedy}."
    )
