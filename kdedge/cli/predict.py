"""Name what images show, with an exported artifact; needs no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdedge._files import explain_os_error
from kdedge._progress import progress
from kdedge.cli._options import options_as
from kdedge.cli._output import FiniteRange
from kdedge.cli._predictions import FORMATS, column_widths, lines_as, named
from kdedge.errors import DataError, KdedgeError
from kdedge.inference.results import NonFiniteLogits, Result, UnreadableImage
from kdedge.targets.registry import list_backends, list_targets

if TYPE_CHECKING:
    from kdedge.inference.classify import Classifier, ImageInput
    from kdedge.runtime.artifact import Precision

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class _Input:
    """What to classify: files and folders, - for standard input, or a camera."""

    paths: tuple[str, ...]
    camera: int | None


@dataclass(frozen=True)
class _Format:
    """How results are written.

    Attributes:
        kind: one of `FORMATS`.
        top: classes an image.
        min_score: percent below which the best class is not named.
        output: the file; None for stdout.
    """

    kind: str
    top: int
    min_score: float | None
    output: Path | None


@dataclass(frozen=True)
class _Engine:
    """Which file is used, and how it runs."""

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
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes an image."
)
@click.option(
    "--min-score",
    type=FiniteRange(0, 100),
    metavar="PERCENT",
    help="Below this score an image's class is not named: - in text, empty in csv, null in jsonl."
    " The score itself is given all the same.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="csv has a heading; jsonl is one JSON object a line. In both, `error` says why an image"
    " has no answer.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the lines here instead of to stdout, each as it comes. Must not exist; without any"
    " line it is not kept.",
)
@click.option(
    "--precision",
    type=click.Choice(_precisions()),
    help="Which of the artifact's files to use. int8, and a file that missed its gate, are used"
    " only when asked for.",
)
@click.option("--backend", metavar="NAME", help=f"{_backend_names()}. [default: what fits]")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images at once. [default: as many as the artifact takes; 1 for - and cameras]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads of the CPU, for the model and for decoding images each.",
)
@options_as(_Input, "wanted")
@options_as(_Format, "shape")
@options_as(_Engine, "engine")
def command(artifact: Path, wanted: _Input, shape: _Format, engine: _Engine) -> None:
    """Classify images with ARTIFACT, the folder that `kdedge export` wrote.

    PATH is an image, or a folder that is searched for images to any depth. With - standard input
    holds one image, or JPEGs one after the other as `ffmpeg -i VIDEO -f image2pipe -c:v mjpeg -`
    writes them; each is classified as it arrives.

    An image that cannot be read gets a line that says why, and the others go on. The exit code is 0
    where any image was classified and 3 where none was.
    """
    from kdedge.inference.classify import Classifier

    _check_what_to_read(wanted.paths, wanted.camera)
    _check_output(shape.output)
    is_stream = wanted.camera is not None or wanted.paths == ("-",)
    inputs = _stream(wanted.camera) if is_stream else _listed(wanted.paths)
    classifier = Classifier.load(
        artifact,
        precision=engine.precision,
        backend=engine.backend,
        n_threads=engine.threads,
    )
    try:
        if shape.min_score is not None and classifier.artifact.head == "argmax":
            raise click.UsageError(
                f"--min-score: {artifact} was exported with the head argmax, which ranks classes"
                " and gives no scores. Export with the head scores."
            )
        size = engine.batch or (1 if inputs.keys is None else None)
        results = classifier.classify_many(inputs.images, top=shape.top, batch=size)
        counts = _write_all(results, inputs.keys, classifier, shape)
        if not counts["classified"] + counts["unsure"]:
            raise _nothing_classified(counts, classifier)
    finally:
        classifier.backend.close()


@dataclass(frozen=True)
class _Inputs:
    """The images to classify.

    Attributes:
        images: keys and images, read when it is their turn.
        keys: all keys; None for a stream, whose length nobody knows.
    """

    images: Iterable[tuple[str, ImageInput]]
    keys: Sequence[str] | None


def _check_what_to_read(paths: Sequence[str], camera: int | None) -> None:
    if camera is not None and paths:
        raise click.UsageError("--camera and PATH: name one of them.")
    if camera is None and not paths:
        raise click.UsageError("Name images, a folder, - for standard input, or --camera N.")
    if "" in paths:
        raise click.UsageError("PATH is empty: name an image or a folder, as in . for this one.")
    if "-" in paths and len(paths) > 1:
        raise click.UsageError("- (standard input) cannot be combined with other paths.")
    if "-" in paths and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Standard input is not a pipe or a file: pipe an image into it.")


def _check_output(output: Path | None) -> None:
    if output is None:
        if sys.stdout is None:  # as by >&-
            raise click.UsageError("Standard output is closed. Name a file with --output.")
        return
    try:
        is_there = output.exists()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise explain_os_error(error, output) from error
    if is_there:
        raise click.UsageError(f"{output} exists, and nothing is overwritten. Name another file.")


def _stream(camera: int | None) -> _Inputs:
    """The frames of a camera or of standard input, numbered from 1."""
    from kdedge.runtime.frames import frames_from_camera, frames_from_stream

    if camera is not None:
        frames: Iterator[Any] = frames_from_camera(camera)
        name = f"camera{camera}"
    else:
        stdin = sys.stdin.fileno()
        frames = frames_from_stream(lambda: os.read(stdin, _BLOCK_BYTES))
        name = "stdin"
    return _Inputs(((f"{name}:{i}", frame) for i, frame in enumerate(frames, 1)), None)


def _listed(paths: Sequence[str]) -> _Inputs:
    """The images of files and folders, in the order given; folders are listed now."""
    from kdedge.data.sources import read_file
    from kdedge.data.sources.folder import open_source

    keys: list[str] = []
    readers: list[Iterator[ImageInput]] = []
    for name in paths:
        path = Path(name)
        try:
            is_folder, is_there = path.is_dir(), path.exists()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DataError(f"{name} cannot be read: {reason}.") from error
        if is_folder:
            source = open_source(path, class_names=(), labeled=False)
            keys += [str(path / item.key) for item in source.items]
            readers.append(_read(source.read, range(len(source.items))))
        elif is_there:
            keys.append(name)
            readers.append(_read(read_file, [path]))
        else:
            raise DataError(f"{name} does not exist.\n  Name an image, or a folder of images.")
    images = (image for reader in readers for image in reader)
    return _Inputs(zip(keys, images, strict=True), keys)


def _read(read: Any, places: Iterable[Any]) -> Iterator[ImageInput]:
    from kdedge.runtime.preprocess import UnusableImage

    for place in places:
        try:
            yield read(place)
        except UnusableImage as error:
            yield error


def _write_all(
    results: Iterable[Result],
    keys: Sequence[str] | None,
    classifier: Classifier,
    shape: _Format,
) -> Counter[str]:
    """Writes a line for each result as soon as it is there; counts them by kind, and logs it."""
    output, min_score = shape.output, shape.min_score
    is_shown = output is None and sys.stdout is not None and sys.stdout.isatty()
    names = classifier.artifact.class_names
    lines = lines_as(
        shape.kind,
        top=min(shape.top, len(names)),
        min_score=min_score,
        columns=column_widths(keys or (), names) if is_shown else (0, 0),
    )
    # On one terminal, a bar would stand in the midst of the lines
    n_images = 0 if is_shown or keys is None else len(keys)
    counts: Counter[str] = Counter()
    try:
        with _bar(n_images) as advance, _opened(output, lines.heading()) as write:
            for result in results:
                write(lines.line(result))
                counts[_kind(result, min_score)] += 1
                advance(counts.total())
    except (KeyboardInterrupt, KdedgeError):
        if counts:
            _LOG.info(_summary(counts, classifier, min_score, output))
        raise
    if counts:
        _LOG.info(_summary(counts, classifier, min_score, output))
    return counts


@contextlib.contextmanager
def _bar(n_images: int) -> Iterator[Callable[[int], None]]:
    """Context with what takes the number of images done; it shows nothing where none is given."""
    if not n_images:
        yield lambda done: None
        return
    with progress("classifying", n_images) as advance:
        yield advance


def _kind(result: Result, min_score: float | None) -> str:
    if isinstance(result, UnreadableImage):
        return "unreadable"
    if isinstance(result, NonFiniteLogits):
        return "unanswered"
    return "classified" if named(result.top[0], min_score) else "unsure"


@contextlib.contextmanager
def _opened(output: Path | None, heading: str | None) -> Iterator[Callable[[str], None]]:
    """Context with what writes one line to stdout or to a new file, below its heading.

    The file keeps the lines in any case, and is not kept without any.
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
            with contextlib.suppress(OSError):  # closing tries the same line once more
                file.close()
            raise explain_os_error(error, output) from error
        n_written += 1

    try:
        with file:
            yield write
    finally:
        if not n_written:
            output.unlink(missing_ok=True)


def _summary(
    counts: Counter[str], classifier: Classifier, min_score: float | None, output: Path | None
) -> str:
    """What was done, with what, and where the lines are."""
    parts = [f"{counts['classified'] + counts['unsure']:,} classified"]
    if counts["unsure"]:
        parts.append(f"{counts['unsure']:,} of them below {min_score:g} %")
    if counts["unreadable"]:
        parts.append(f"{counts['unreadable']:,} unreadable")
    if counts["unanswered"]:
        parts.append(f"{counts['unanswered']:,} without a finite answer")
    what = f"{classifier.file.name} on {classifier.backend.describe()}"
    wrote = "" if output is None else f"\nWrote {output}"
    return f"{_images(counts.total())}: {', '.join(parts)}; {what}{wrote}"


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _nothing_classified(counts: Counter[str], classifier: Classifier) -> DataError:
    if not counts:
        return DataError(
            "Standard input had no image.\n"
            "  Pipe an image into it, or JPEGs one after the other"
            " (ffmpeg -i VIDEO -f image2pipe -c:v mjpeg -)."
        )
    file = classifier.artifact.path / classifier.file.name
    if not counts["unanswered"]:
        return DataError(
            f"None of {_images(counts.total())} could be classified with {file.parent}.\n"
            "  The lines above say why; check that these are image files."
        )
    is_fp32 = classifier.file.precision == "fp32"
    remedy = "Export the run again" if is_fp32 else "Use the float32 file: --precision fp32"
    return DataError(
        f"{file} gives NaN or infinity for {_images(counts['unanswered'])}, and no other was"
        f" classified.\n  {remedy}."
    )
