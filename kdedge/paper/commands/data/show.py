"""Show the files of a benchmark set: URLs, terms, layout, and which are missing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kdedge.cli.output import json_option, next_line, print_result, table
from kdedge.paper.benchmark_sets.api import open_set
from kdedge.paper.commands.data.options import data_option


@click.command("show")
@click.argument("name")
@data_option
@json_option
def command(name: str, data: Path, as_json: bool) -> None:
    """Show the files of a benchmark set: URLs, terms, layout, and which are missing."""
    opened = open_set(name, data)
    benchmark = opened.benchmark
    folder = opened.folder
    missing = opened.missing
    record = {
        "name": name,
        "folder": str(folder),
        "license": benchmark.license,
        "n_classes": benchmark.n_classes,
        "n_images": dict(benchmark.n_images),
        "mirror": benchmark.mirror and asdict(benchmark.mirror),
        "files": [asdict(file) | {"here": file not in missing} for file in benchmark.downloads],
    }
    parts = ", ".join(f"{part} {count:,}" for part, count in benchmark.n_images.items())
    rows = [
        ["set", (benchmark.about or name).partition("\n")[0]],
        ["classes", str(benchmark.n_classes)],
        ["images", f"{sum(benchmark.n_images.values()):,} ({parts})"],
        ["license", benchmark.license],
        ["folder", str(folder)],
    ]
    if benchmark.mirror is not None:
        rows.append(["mirror", benchmark.mirror.url])
    blocks = [table(rows)]
    for file in benchmark.downloads:
        is_here = "missing" if file in missing else "here"
        sha256 = "" if file.sha256 is None else f"\n  SHA-256 {file.sha256}"
        blocks.append(f"{file.path}: {is_here}\n  {file.by_hand}{sha256}")
    if missing:
        blocks.append(next_line("data", "fetch", name, given=["data"]))
    print_result(record, as_json=as_json, text="\n\n".join(blocks))
