"""Writes a report: one HTML page, and its plots as PNG beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge import __version__
from kdedge.errors import MissingPackage
from kdedge.files import new_folder, write_atomic
from kdedge.reporting.blocks import Chapter, Plot
from kdedge.reporting.chapters import make_chapters
from kdedge.reporting.records import RunRecords

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise MissingPackage("jinja2", extra="report", purpose="A report") from error

PAGE = "index.html"

_REPORT_FOOTER = "from the runs' own records. The plots are also beside it as PNG"


@dataclass(frozen=True)
class Report:
    """A written report: its folder, and the names of its PNG files in the page's order."""

    folder: Path
    pictures: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The HTML file."""
        return self.folder / PAGE

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        pictures = [str(self.folder / name) for name in self.pictures]
        return {"folder": str(self.folder), "page": str(self.page), "pictures": pictures}


def write_report(runs: Sequence[RunRecords], output: Path | None = None) -> Report:
    """Writes a report, completely or not at all. The same records give the same bytes.

    Args:
        runs: one or more.
        output: a folder that does not exist; default: the next number in the first run's `report`.

    Raises:
        RecipeError: the folder exists.
        ResourceError: it cannot be written.
    """
    chapters = make_chapters(runs)
    page = render_page(chapters, "report", _REPORT_FOOTER)
    blocks = (b for chapter in chapters for section in chapter.sections for b in section.blocks)
    plots = {f"{block.name}.png": block.picture for block in blocks if isinstance(block, Plot)}
    folder = runs[0].run.path / "report" if output is None else output
    with new_folder(folder, is_numbered=output is None) as (part, final):
        for name, picture in plots.items():
            write_atomic(part / name, picture.png)
        write_atomic(part / PAGE, page.encode())
    return Report(final(), tuple(plots))


def render_page(chapters: Sequence[Chapter], kind: str, footer: str) -> str:
    """One self-contained HTML file without scripts; every text in it is escaped.

    Args:
        chapters: its contents, one or more.
        kind: what it is, in one word for its title.
        footer: what it was made from, after "Made by kdedge VERSION".
    """
    environment = Environment(
        loader=PackageLoader("kdedge.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = chapters[0]  # for several runs, the comparison, whose subtitle names them
    title = first.title if len(chapters) == 1 else first.subtitle
    template = environment.get_template("page.html.j2")
    values = {"chapters": chapters, "title": title, "kind": kind, "footer": footer}
    return template.render(**values, version=__version__) + "\n"
