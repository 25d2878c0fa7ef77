"""Read every image of SOURCE once: show unreadable images, sizes and classes."""

from __future__ import annotations

import click

from kdedge.api.data import scan_images
from kdedge.cli.output import json_option, print_result


@click.command("scan")
@click.argument("source")
@json_option
def command(source: str, as_json: bool) -> None:
    """Read every image of SOURCE once: show unreadable images, sizes and classes.

    SOURCE is a folder, a CSV file of image paths, WebDataset shards such as
    'shards-{000..063}.tar', Parquet files such as 'train-*.parquet', or a Hugging Face dataset: a
    folder, or hf://datasets/OWNER/NAME. Nothing is written, except that the datasets package copies
    Parquet files and datasets of the Hub into its cache.
    """
    print_result(scan_images(source), as_json=as_json)
