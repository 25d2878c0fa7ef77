"""From chapters to a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge import __version__
from kdedge.errors import MissingPackage
from kdedge.report.blocks import Chapter

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise MissingPackage("jinja2", extra="report", purpose="A report") from error


def make_page(chapters: Sequence[Chapter]) -> str:
    """One HTML file: style, pictures and all are in it, and no script is.

    Every text is escaped, class names and keys too.

    Args:
        chapters: their pictures drawn.
    """
    environment = Environment(
        loader=PackageLoader("kdedge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    first = chapters[0]  # the comparison's subtitle names the runs
    title = first.title if len(chapters) == 1 else first.subtitle
    return template.render(chapters=chapters, title=title, version=__version__) + "\n"
