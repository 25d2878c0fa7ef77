"""What a page is made of: plain values that the template lays out and escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from kdedge.report.plots import Draw, Picture


@dataclass(frozen=True)
class Facts:
    """Terms and what they are.

    Attributes:
        rows: term and text.
    """

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows, with units.
        header: of its columns.
        rows: cells, as texts; numbers have their digits.
        caption: how it was obtained.
        n_text: columns from the left that hold words; the others hold numbers.
        is_folded: shown when it is asked for.
    """

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    n_text: int = 1
    is_folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        name: of its PNG file, without the ending.
        title: what it shows.
        draw: draws it.
        caption: how it was obtained.
        picture: what `draw` gave.
    """

    kind: ClassVar[str] = "plot"
    name: str
    title: str
    draw: Draw
    caption: str
    picture: Picture | None = None


@dataclass(frozen=True)
class Shown:
    """One image with two answers.

    Attributes:
        image: its key.
        picture: a small one, as a data URI; None where it could not be read.
        label: its class; None where that is not known.
        reference: the float32 model's answer.
        answer: the file's.
        distance: between the two softmaxes, as a text.
        is_other: whether the answers differ.
    """

    image: str
    picture: str | None
    label: str | None
    reference: str
    answer: str
    distance: str
    is_other: bool


@dataclass(frozen=True)
class Gallery:
    """Images with two answers each.

    Attributes:
        title: whose answers.
        images: the worst first.
        caption: how they were found, and why pictures are missing.
    """

    kind: ClassVar[str] = "gallery"
    title: str
    images: Sequence[Shown]
    caption: str


@dataclass(frozen=True)
class Text:
    """Text as it is, such as commands or a recipe.

    Attributes:
        title: what it is.
        text: its lines.
        is_folded: shown when it is asked for.
    """

    kind: ClassVar[str] = "text"
    title: str
    text: str
    is_folded: bool = False


@dataclass(frozen=True)
class Note:
    """What a reader has to know.

    Attributes:
        lines: one or more; a command among them stands after the word.
    """

    kind: ClassVar[str] = "note"
    lines: Sequence[str]


Block = Facts | Table | Plot | Gallery | Text | Note


@dataclass(frozen=True)
class Section:
    """Blocks under a heading.

    Attributes:
        anchor: for links within the page.
        title: the heading.
        blocks: what stands under it.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Chapter:
    """All about one run, or about several together.

    Attributes:
        anchor: for links within the page.
        title: the heading.
        subtitle: one line under it.
        figures: the most important ones: name, value, and what it is against.
        sections: in order.
    """

    anchor: str
    title: str
    subtitle: str
    sections: Sequence[Section]
    figures: Sequence[tuple[str, str, str]] = field(default=())
