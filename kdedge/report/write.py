"""A report's folder: the page, and its pictures as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdedge._files import write_atomic
from kdedge._folders import new_folder
from kdedge.report.blocks import Block, Chapter, Plot
from kdedge.report.chapters import make_chapters
from kdedge.report.html import make_page
from kdedge.report.plots import render
from kdedge.report.records import RunRecords

PAGE = "index.html"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        folder: the new folder.
        pictures: names of its PNG files, in the page's order.
    """

    folder: Path
    pictures: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The HTML file."""
        return self.folder / PAGE

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values for JSON."""
        pictures = [str(self.folder / name) for name in self.pictures]
        return {"folder": str(self.folder), "page": str(self.page), "pictures": pictures}


def write_report(runs: Sequence[RunRecords], output: Path | None = None) -> Report:
    """Writes a report, whole or not at all; the same records give the same bytes.

    Args:
        runs: one or more.
        output: a folder that is not there yet; None for the next number in the first run's
            `report`.

    Raises:
        RecipeError: the folder exists.
        ResourceError: it cannot be written.
    """
    chapters = _drawn(make_chapters(runs))
    page = make_page(chapters)
    plots = _plots(chapters)
    folder = runs[0].run.path / "report" if output is None else output
    with new_folder(folder, is_numbered=output is None) as (part, final):
        for plot in plots:
            assert plot.picture is not None
            write_atomic(part / f"{plot.name}.png", plot.picture.png)
        write_atomic(part / PAGE, page.encode())
    return Report(final(), tuple(f"{plot.name}.png" for plot in plots))


def _drawn(chapters: Sequence[Chapter]) -> list[Chapter]:
    """The same chapters with every picture drawn."""
    return [
        replace(
            chapter,
            sections=[
                replace(section, blocks=[_with_picture(block) for block in section.blocks])
                for section in chapter.sections
            ],
        )
        for chapter in chapters
    ]


def _with_picture(block: Block) -> Block:
    return replace(block, picture=render(block.draw)) if isinstance(block, Plot) else block


def _plots(chapters: Sequence[Chapter]) -> list[Plot]:
    blocks = (b for chapter in chapters for section in chapter.sections for b in section.blocks)
    return [block for block in blocks if isinstance(block, Plot)]
