"""The parts of a report's page: plain values that the template lays out and escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from kdedge.records.tables import Table
from kdedge.reporting.plots import Draw, render


@dataclass(frozen=True)
class Plot:
    """A plot with a title and a caption; `name` is unique on its page and prefixes its SVG ids."""

    kind: ClassVar[str] = "plot"
    name: str
    title: str
    draw: Draw
    caption: str

    @cached_property
    def svg(self) -> str:
        """The drawn plot."""
        return render(self.draw, self.name)


@dataclass(frozen=True)
class Card:
    """One image with lines about it.

    Attributes:
        image: the image's key.
        thumbnail: a data URI; None if the image could not be read.
        lines: lines of text, such as its label and the models' predictions.
    """

    image: str
    thumbnail: str | None
    lines: Sequence[str]


@dataclass(frozen=True)
class Cards:
    """Images side by side."""

    kind: ClassVar[str] = "cards"
    title: str
    cards: Sequence[Card]
    caption: str = ""


@dataclass(frozen=True)
class Text:
    """Preformatted text, such as commands or a recipe."""

    kind: ClassVar[str] = "text"
    title: str
    text: str


@dataclass(frozen=True)
class Note:
    """Remarks that the reader needs, one per line."""

    kind: ClassVar[str] = "note"
    title: ClassVar[str] = ""
    lines: Sequence[str]


Block = Table | Plot | Cards | Text | Note


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; `is_folded` hides them until the reader opens them."""

    title: str
    blocks: Sequence[Block]
    is_folded: bool = False


@dataclass(frozen=True)
class Chapter:
    """Sections about one run, or about several together.

    Attributes:
        anchor: id for links within the page.
        title: the heading.
        subtitle: one line under the heading.
        sections: the sections in order.
        verdict: sentences on whether to use the model.
    """

    anchor: str
    title: str
    subtitle: str
    sections: Sequence[Section]
    verdict: Sequence[str] = ()
