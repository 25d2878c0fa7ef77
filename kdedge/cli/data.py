"""List, fetch and verify the benchmark sets, or scan your own images."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from kdedge.api.data import fetch_set, list_sets, open_set, scan_images, verify_set
from kdedge.cli.options import folder_option
from kdedge.cli.output import given_options, json_option, next_line, print_result, table
from kdedge.errors import DataError

_data_option = folder_option(
    "--data",
    default=Path("data"),
    envvar="KDEDGE_DATA",
    help="Folder of the benchmark sets. The environment variable KDEDGE_DATA sets it too; in a"
    " recipe it is data.root.",
)


@click.group("data")
def command() -> None:
    """List, fetch and verify the benchmark sets, or scan your own images.

    The sets are in one folder, in the layout of CoOp's code. A folder that you use with CoOp works
    as it is.
    """


@command.command("list")
@_data_option
@json_option
def list_here(data: Path, as_json: bool) -> None:
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


@command.command("show")
@click.argument("name")
@_data_option
@json_option
def show(name: str, data: Path, as_json: bool) -> None:
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


@command.command("fetch")
@click.argument("name")
@_data_option
@json_option
def fetch(name: str, data: Path, as_json: bool) -> None:
    """Download the missing files of a benchmark set and unpack them.

    They come from the Hugging Face Hub; an interrupted download continues where it stopped. If the
    Hub lacks a file, the message has its official address and where to put it.
    """
    fetched = fetch_set(name, data)
    if fetched.new:
        text = f"Wrote {fetched.folder} ({', '.join(fetched.new)})"
    else:
        text = f"{fetched.folder} has all of {name} already."
    if fetched.kept:
        text += f"\nNo longer needed: {', '.join(str(fetched.folder / k) for k in fetched.kept)}"
    text += f"\n{next_line('data', 'verify', name, given=['data'])}"
    print_result(fetched, as_json=as_json, text=text)


@command.command("verify")
@click.argument("name")
@click.option("--images", "read_images", is_flag=True, help="Also decode every image.")
@_data_option
@json_option
def verify(name: str, read_images: bool, data: Path, as_json: bool) -> None:
    """Compare a benchmark set's counts, class names and split with the published ones."""
    verification = verify_set(name, data, read_images=read_images)
    print_result(verification, as_json=as_json)
    if verification.problems:
        remedy = "Fetch what is missing"
        if not open_set(name, data).missing:
            remedy = (
                "A fetch only adds files and folders that are missing altogether.\n"
                "  Move the files that differ away, and run"
            )
        count = len(verification.problems)
        differences = "1 difference" if count == 1 else f"{count} differences"
        fetch_again = shlex.join(["kdedge", "data", "fetch", name, *given_options("data")])
        raise DataError(
            f"{verification.folder} differs from the published {name}: {differences}.\n"
            f"  {remedy}: {fetch_again}"
        )


@command.command("scan")
@click.argument("source")
@json_option
def scan(source: str, as_json: bool) -> None:
    """Read every image of SOURCE once: show unreadable images, sizes and classes.

    SOURCE is a folder, a CSV file of image paths, WebDataset shards such as
    'shards-{000..063}.tar', Parquet files such as 'train-*.parquet', or a Hugging Face dataset: a
    folder, or hf://datasets/OWNER/NAME. Nothing is written, except that the datasets package copies
    Parquet files and datasets of the Hub into its cache.
    """
    print_result(scan_images(source), as_json=as_json)
