"""Writes a report: one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdedge import __version__
from kdedge.errors import MissingPackage
from kdedge.files import new_folder, write_atomic
from kdedge.reporting.chapters import make_chapters
from kdedge.reporting.records import RunRecords
from kdedge.tables import html_table

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise MissingPackage("jinja2", extra="report", purpose="A report") from error

PAGE = "index.html"


def write_report(runs: Sequence[RunRecords], output: Path | None = None) -> Path:
    """Writes a report, completely or not at all. The same records give the same bytes.

    Args:
        runs: one or more.
        output: a folder that does not exist; default: the next number in the first run's `report`.

    Returns:
        The page: a file that loads nothing and has no script; every text in it is escaped.

    Raises:
        RecipeError: the folder exists.
        ResourceError: it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("kdedge.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = ", ".join(records.run.name for records in runs)
    values = {"chapters": make_chapters(runs), "title": title, "version": __version__}
    page = environment.get_template("page.html.j2").render(html_table=html_table, **values) + "\n"
    folder = runs[0].run.path / "report" if output is None else output
    with new_folder(folder, is_numbered=output is None) as (part, final):
        write_atomic(part / PAGE, page.encode())
    return final() / PAGE
