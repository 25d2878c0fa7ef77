"""The parts of a report's page: plain values that the template lays out and escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, TypeVar

from kdedge.reporting.plots import Draw, Picture, render

_MOST_COLUMNS, _MOST_TEXTS = 6, 2  # columns of a table on half a page


@dataclass(frozen=True)
class Facts:
    """A list of terms, each with a text; `is_wide`: it takes a full row of the page."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]
    is_wide: bool = True


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: the subject, with units.
        header: column titles.
        rows: cells, as texts.
        caption: how the values were measured.
        n_text: number of left columns that hold words; the others hold numbers.
        is_folded: hidden until the reader opens it.
    """

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    n_text: int = 1
    is_folded: bool = False

    @property
    def is_wide(self) -> bool:
        """Whether it takes a full row of the page."""
        return self.is_folded or len(self.header) > _MOST_COLUMNS or self.n_text > _MOST_TEXTS


@dataclass(frozen=True)
class Plot:
    """A plot with a title and a caption; `name` is its PNG file's name, without the extension."""

    kind: ClassVar[str] = "plot"
    is_wide: ClassVar[bool] = False
    name: str
    title: str
    draw: Draw
    caption: str

    @cached_property
    def picture(self) -> Picture:
        """The drawn plot."""
        return render(self.draw)


@dataclass(frozen=True)
class GalleryImage:
    """One image with the predictions of two models.

    Attributes:
        image: its key.
        picture: a thumbnail as a data URI; None if it could not be read.
        label: its class; None if unknown.
        reference: the float32 model's class, or the old artifact's answer.
        predicted: the exported file's class, or the new artifact's answer.
        distance: between the two softmaxes, as a text; None if it was not measured.
    """

    image: str
    picture: str | None
    label: str | None
    reference: str
    predicted: str
    distance: str | None = None


@dataclass(frozen=True)
class Gallery:
    """Images with the predictions of two models, the worst first."""

    kind: ClassVar[str] = "gallery"
    is_wide: ClassVar[bool] = True
    title: str
    images: Sequence[GalleryImage]
    caption: str


@dataclass(frozen=True)
class SampleCard:
    """One image with a model's predictions.

    Attributes:
        image: its key.
        picture: a thumbnail as a data URI; None if it could not be read.
        top: the model's best classes, each with its softmax as a text; at least one.
        teacher: the teacher's class; None without a teacher.
        label: its own class; None without a label.
    """

    image: str
    picture: str | None
    top: Sequence[tuple[str, str]]
    teacher: str | None
    label: str | None = None


@dataclass(frozen=True)
class Samples:
    """Images with a model's predictions; the caption is empty if another block has it."""

    kind: ClassVar[str] = "gallery samples"
    is_wide: ClassVar[bool] = True
    title: str
    images: Sequence[SampleCard]
    caption: str


@dataclass(frozen=True)
class Text:
    """Preformatted text, such as commands or a recipe."""

    kind: ClassVar[str] = "text"
    is_wide: ClassVar[bool] = True
    title: str
    text: str
    is_folded: bool = False


@dataclass(frozen=True)
class Note:
    """Remarks that the reader needs, one per line."""

    kind: ClassVar[str] = "note"
    is_wide: ClassVar[bool] = True
    lines: Sequence[str]


Block = Facts | Table | Plot | Gallery | Samples | Text | Note


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; `anchor` is for links within the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]

    @property
    def is_wide(self) -> bool:
        """Whether it takes a full row of the page; a single plot takes half a row."""
        return len(self.blocks) > 1 or self.blocks[0].is_wide

    @property
    def laid_out(self) -> list[tuple[Block, bool]]:
        """The blocks, each with whether it takes a full row; a half row always has a neighbor."""
        return lay_out(self.blocks)


@dataclass(frozen=True)
class Chapter:
    """Sections about one run, or about several together.

    Attributes:
        anchor: for links within the page.
        title: the heading.
        subtitle: one line under the heading.
        sections: in order.
        figures: the most important values: name, value, and what it is compared with.
        headline: how a student compares with its teacher, in one line; None for other runs.
    """

    anchor: str
    title: str
    subtitle: str
    sections: Sequence[Section]
    figures: Sequence[tuple[str, str, str]] = ()
    headline: str | None = None

    @property
    def laid_out(self) -> list[tuple[Section, bool]]:
        """The sections, as `Section.laid_out`."""
        return lay_out(self.sections)


class _Part(Protocol):
    @property
    def is_wide(self) -> bool: ...


_P = TypeVar("_P", bound=_Part)


def lay_out(parts: Sequence[_P]) -> list[tuple[_P, bool]]:
    """Decides for each part whether it takes a full row; a narrow one without a neighbor does."""
    found: list[tuple[_P, bool]] = []
    is_open = False  # whether the last row has space for another half
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        is_half = not part.is_wide and (is_open or (after is not None and not after.is_wide))
        is_open = is_half and not is_open
        found.append((part, not is_half))
    return found
