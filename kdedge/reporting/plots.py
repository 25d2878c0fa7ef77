"""Draws plots as SVG for light and dark pages, and as PNG.

SVG keeps text as text: a browser has letters that matplotlib's font lacks. A `$` in a name does not
start a formula.
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
    from matplotlib.ticker import LogLocator
except ImportError as error:
    raise MissingPackage("matplotlib", extra="report", purpose="A report") from error

# Only this file reports a missing matplotlib
__all__ = [
    "DARK",
    "LIGHT",
    "Draw",
    "Figure",
    "LinearSegmentedColormap",
    "LogLocator",
    "Picture",
    "PowerNorm",
    "Theme",
    "render",
]

PNG_DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colors of a page, safe for all common kinds of color blindness.

    Attributes:
        text: axes and words.
        muted: grid, leader lines and background data.
        first: the run's own model.
        second: the model that it is compared with.
        third: a third kind of model.
        shares: color map of matrices, from 0 to 100 percent.
    """

    text: str
    muted: str
    first: str
    second: str
    third: str
    shares: tuple[str, ...]


# The hues of Okabe and Ito (2008), lighter on a dark page
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
    """A drawn plot: SVG as data URIs, a PNG on white, and the size in CSS pixels."""

    light: str
    dark: str
    png: bytes
    width: int
    height: int

    @property
    def svg_on_white(self) -> bytes:
        """The SVG on a white page, for a file: what shows it may have a dark page."""
        svg = base64.b64decode(self.light.partition(",")[2]).decode()
        page = ' <rect width="100%" height="100%" fill="#ffffff"/>\n'
        return svg.replace(" <defs>", f"{page} <defs>", 1).encode()


def render(draw: Draw) -> Picture:
    """Draws a plot in both themes; the same drawing gives the same bytes."""
    with _style(DARK):
        dark = _svg_uri(draw(DARK))
    with _style(LIGHT):
        figure = draw(LIGHT)
        light = _svg_uri(figure)
        png = _save(figure, FigureCanvasAgg, "white", format="png", metadata={"Software": None})
        width, height = figure.get_size_inches() * 96  # CSS pixels per inch
    return Picture(light=light, dark=dark, png=png, width=round(width), height=round(height))


@contextlib.contextmanager
def _style(theme: Theme) -> Iterator[None]:
    """Context with this module's settings instead of matplotlibrc; saving also reads some."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_settings(theme))
        # The PNG shows a box instead of the letter; SVG and tables show it
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
        "svg.hashsalt": "kdedge",  # reproducible ids
    }


def _svg_uri(figure: Figure) -> str:
    data = _save(figure, FigureCanvasSVG, "none", format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"


def _save(figure: Figure, canvas: type[Any], paper: str, **how: Any) -> bytes:
    file = io.BytesIO()
    canvas(figure).print_figure(file, dpi=PNG_DPI, facecolor=paper, **how)
    return file.getvalue()
