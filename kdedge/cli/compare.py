"""Compare two artifacts on the same images: what changed, and whether the new one is as good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge.cli.options import count_option, runs_option, threads_option
from kdedge.cli.output import json_option, print_result, show_result


@click.command("compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--labels",
    is_flag=True,
    help="The images have labels: a folder has a subfolder for each class, a CSV list has a column"
    " of labels, a shard has cls members. A number is a position in OLD's class list.",
)
@click.option(
    "--require-no-worse",
    is_flag=True,
    help="Exit with code 6 if McNemar's exact test shows NEW to be worse (p below 0.05). Needs"
    " --labels.",
)
@count_option("--batch", help="Images per call. [default: as many as each artifact takes]")
@threads_option()
@json_option
@runs_option
def command(old: Path, new: Path, paths: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Compare the predictions of the artifacts OLD and NEW on the same images.

    OLD and NEW are folders that `kdedge export` wrote, runs, or model files in an artifact's
    folder, such as model.int8.onnx. If `kdedge predict` would take files of different precisions,
    the float32 files are compared. PATH is an image, a folder, a shard (.tar), a CSV list or a
    video.

    Class lists may differ in order and in names; agreement and accuracy only count classes that
    both have. An image that cannot be read is counted and does not stop the others.
    """
    from kdedge.api.compare import compare

    show_result(
        lambda: compare(old, new, *paths, **options),
        lambda comparison: print_result(comparison, as_json=as_json, text=str(comparison)),
    )
