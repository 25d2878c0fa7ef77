"""How pictures are drawn: once for light pages, once for dark ones, and as PNG.

SVG keeps its text as text, so that a browser finds the letters that matplotlib's own font lacks.
Names are drawn as they are: a `$` in them begins no formula.
"""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kdedge.errors import MissingPackage

try:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingPackage("matplotlib", extra="report", purpose="A report") from error

# Where matplotlib is missing, this file alone says so
__all__ = [
    "DARK",
    "LIGHT",
    "Draw",
    "Figure",
    "LinearSegmentedColormap",
    "Picture",
    "PowerNorm",
    "Theme",
    "render",
]

PNG_DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colors of a page; those of data are told apart in all common kinds of color blindness.

    Attributes:
        text: axes and words.
        muted: grid, leader lines and what is in the background.
        first: the run's own model.
        second: what it is compared with.
        third: a third kind.
        shares: of matrices, from none to all.
    """

    text: str
    muted: str
    first: str
    second: str
    third: str
    shares: tuple[str, ...]


# The hues of Okabe and Ito (2008), lighter on dark paper
LIGHT = Theme(
    text="#1f2430",
    muted="#9aa3b2",
    first="#0072b2",
    second="#d55e00",
    third="#009e73",
    shares=("#f3f5f8", "#7db8dc", "#0072b2", "#06243a"),
)
DARK = Theme(
    text="#e4e8ef",
    muted="#6d7789",
    first="#56b4e9",
    second="#f0923c",
    third="#2fc79a",
    shares=("#1d232d", "#1f5f88", "#56b4e9", "#eef8ff"),
)

Draw = Callable[[Theme], Figure]


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        light: SVG for light pages, as a data URI.
        dark: the same for dark pages.
        png: the bytes of a PNG on white.
        width: of the SVG, CSS pixels.
        height: of the SVG, CSS pixels.
    """

    light: str
    dark: str
    png: bytes
    width: int
    height: int


def render(draw: Draw) -> Picture:
    """Draws a picture; the same drawing gives the same bytes.

    Args:
        draw: makes the figure in the colors of a theme.
    """
    with _style(DARK):
        dark = _svg_uri(draw(DARK))
    with _style(LIGHT):
        figure = draw(LIGHT)
        light = _svg_uri(figure)
        png = _save(figure, FigureCanvasAgg, "white", format="png", metadata={"Software": None})
        width, height = figure.get_size_inches() * 96  # CSS pixels an inch
    return Picture(light=light, dark=dark, png=png, width=round(width), height=round(height))


@contextlib.contextmanager
def _style(theme: Theme) -> Iterator[None]:
    """Context of this module's settings, whatever matplotlibrc says; some are read when saving."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_settings(theme))
        # In a PNG such a letter is a box; SVG and the tables have it
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        yield


def _settings(theme: Theme) -> dict[Any, Any]:
    colored = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    return {
        **dict.fromkeys(colored, theme.text),
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "grid.color": theme.muted,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.6,
        "font.size": 9.5,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "figure.constrained_layout.use": True,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "kdedge",  # ids that stay the same
    }


def _svg_uri(figure: Figure) -> str:
    data = _save(figure, FigureCanvasSVG, "none", format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"


def _save(figure: Figure, canvas: type[Any], paper: str, **how: Any) -> bytes:
    file = io.BytesIO()
    canvas(figure).print_figure(file, dpi=PNG_DPI, facecolor=paper, **how)
    return file.getvalue()
