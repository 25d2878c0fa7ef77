"""Compare two artifacts on the same images: what changed, and whether the new one is as good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdedge.cli._options import runs_option, threads_value_option
from kdedge.cli._output import json_option, print_result, show_result, table
from kdedge.errors import some_of

if TYPE_CHECKING:
    from kdedge.api.compare import Comparison

_MOST_SHOWN = 20


@click.command("compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--labels",
    is_flag=True,
    help="The images have labels: a folder has a subfolder for each class, a CSV list a column of"
    " labels, a shard cls members. A number is a position in OLD's class list.",
)
@click.option(
    "--require-no-worse",
    is_flag=True,
    help="End in exit code 6 if McNemar's exact test shows NEW to be worse (p below 0.05). Needs"
    " --labels.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images per call. [default: as many as each artifact takes]",
)
@threads_value_option
@json_option
@runs_option
def command(
    old: Path,
    new: Path,
    paths: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Compare what the artifacts OLD and NEW answer on the same images.

    OLD and NEW are folders that `kdedge export` wrote, runs, or model files in an artifact's
    folder, such as model.int8.onnx. If `kdedge predict` would take files of different precisions,
    the float32 files are compared. PATH is an image, a folder, a shard (.tar), a CSV list or a
    video.

    Class lists may differ in order and in names; agreement and accuracy are of the classes
    that both have. An image that cannot be read is counted and does not stop the others.
    """
    from kdedge.api.compare import compare

    show_result(
        lambda: compare(old, new, *paths, **options),
        lambda comparison: print_result(comparison, as_json=as_json, text=_as_text(comparison)),
    )


def _as_text(comparison: Comparison) -> str:
    from kdedge.api.compare import facts
    from kdedge.inference.lines import visible

    parts = [table([list(row) for row in facts(comparison)])]
    header, rows = comparison.table
    if rows:
        shown = table(rows[:_MOST_SHOWN], header=header, align="llrlrl"[: len(header)])
        more = len(rows) - _MOST_SHOWN
        parts.append(shown + (f"\n... and {more:,} more changed answers" if more > 0 else ""))
    else:
        parts.append("No answer has changed.")
    counts = [entry for entry in comparison.predictions.classes if entry.n_old != entry.n_new]
    if counts:
        counts.sort(key=lambda count: -abs(count.n_new - count.n_old))
        cells = [
            [visible(x.class_name), f"{x.n_old:,}", f"{x.n_new:,}"] for x in counts[:_MOST_SHOWN]
        ]
        more = len(counts) - _MOST_SHOWN
        text = table(cells, header=("class", "old", "new"), align="lrr")
        parts.append(text + (f"\n... and {more:,} more classes" if more > 0 else ""))
    if comparison.unreadable:
        lines = [f"{visible(image.image)}: {image.reason}" for image in comparison.unreadable]
        parts.append("\n".join(["Unreadable:", *some_of(lines, _MOST_SHOWN)]))
    return "\n\n".join(parts)
