"""Watch a camera, a stream, a video or a folder: decisions as JSON lines, a drift alarm."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from kdedge.cli.options import artifact_options, count_option


@click.command("watch")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("source")
@click.option("--frame-events", is_flag=True, help="Give each frame's prediction, too.")
@count_option("--every", default=1, help="Take the first and then every Nth frame or file.")
@count_option(
    "--window",
    help="Decide by the last N frames: two thirds of them bring a decision, less than one third end"
    " it. [default: 7; 1 and --frame-events for a folder]",
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="A frame with a lower score supports no class.",
)
@click.option("--existing", is_flag=True, help="Take a folder's present files, too, first.")
@click.option(
    "--drift",
    type=click.Choice(("artifact", "stream", "off")),
    help="What the drift alarm compares with: the artifact's smoke set, or the start of the stream."
    " [default: artifact; stream if that has under 100 images]",
)
@count_option(
    "--drift-frames",
    help="Frames in a row that the drift alarm counts as one, as they may show the same thing."
    " [default: 25; 1 for a folder]",
)
@artifact_options
def command(artifact: Path, source: str, **options: Any) -> None:
    """Watch SOURCE with ARTIFACT, the folder that `kdedge export` wrote, or a run with one.

    SOURCE is a camera (0 or /dev/video0), an address (rtsp://..., http://...), a video, or a folder
    that image files drop into. Needs kdedge[watch].

    Prints one JSON object a line: `start`, a `decision` when it changes, `lost` and `back` for a
    source that goes away, `drift`, and `end`. A camera or stream that is lost is opened again. If
    the model is slower than it, the newest frame is taken and others are dropped.
    """
    from kdedge.serving.api import watch

    with contextlib.closing(watch(artifact, source, **options)) as events:
        _end_last_line()
        for event in events:
            click.echo(json.dumps(event, ensure_ascii=False))


def _end_last_line() -> None:
    """Ends the last line of the file that stdout appends to, if a full disk took only a part."""
    with (
        contextlib.suppress(OSError, AttributeError),  # stdout is closed, or no file
        Path(f"/proc/self/fd/{sys.stdout.fileno()}").open("rb") as file,
    ):
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            click.echo()
