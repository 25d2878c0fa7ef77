"""Scans images."""

from __future__ import annotations

from pathlib import Path

from kdedge.data.survey import Survey, survey


def scan_images(source: str | Path) -> Survey:
    """Reads every image of a source once: finds unreadable images, sizes and classes.

    Args:
        source: a folder, a CSV file of image paths, WebDataset shards such as
            `shards-{000..063}.tar`, Parquet files, or a Hugging Face dataset.

    Raises:
        DataError: the source is missing, empty or malformed, or no image can be read.
        SetupError: the package that reads it is not installed.
    """
    return survey(str(source))
