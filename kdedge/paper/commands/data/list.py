"""List the benchmark sets and which of them are here."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli.output import json_option, print_result, table
from kdedge.paper.benchmark_sets.api import list_sets
from kdedge.paper.commands.data.options import data_option


@click.command("list")
@data_option
@json_option
def command(data: Path, as_json: bool) -> None:
    """List the benchmark sets and which of them are here."""
    rows = []
    records = []
    for name, opened in list_sets(data).items():
        n_classes = opened.benchmark.n_classes
        n_images = dict(opened.benchmark.n_images)
        about = {"license": opened.benchmark.license, "here": opened.status}
        records.append({"name": name, "n_classes": n_classes, "n_images": n_images, **about})
        cells = [str(n_classes), f"{sum(n_images.values()):,}", opened.status]
        rows.append([name, *cells, opened.benchmark.license])
    header = ("set", "classes", "images", "here", "license")
    record = {"root": str(data), "sets": records}
    print_result(record, as_json=as_json, text=table(rows, header=header, align="lrrll"))
