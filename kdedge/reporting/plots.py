"""Draws plots as SVG for light and dark pages.

Colors are CSS variables of the page; their defaults are the colors of a light page. Text is not
drawn as paths, since a browser has letters that matplotlib's font lacks. A `$` in a name does not
start a formula.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

# Safe for all common kinds of color blindness: the hues of Okabe and Ito (2008)
TEXT, MUTED = "#1f2430", "#9aa3b2"
FIRST, SECOND, THIRD = "#0072b2", "#d55e00", "#009e73"
_VARIABLES = {TEXT: "text", MUTED: "muted", FIRST: "first", SECOND: "second", THIRD: "third"}

# Color map of matrices, from 0 to 100 percent, on the page's own background
SHARES = LinearSegmentedColormap.from_list("shares", ["#3a94d000", "#3a94d0ff"])

Draw = Callable[[], Figure]


def render(draw: Draw, name: str) -> str:
    """Draws a plot as an `svg` element; the same drawing gives the same text.

    Args:
        draw: makes the figure.
        name: prefix of all ids in the element.
    """
    file = io.BytesIO()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # ignores matplotlibrc; `print_figure` reads settings, too
        mpl.rcParams.update(_SETTINGS)
        # Matplotlib's font only measures the text; the page's font has the letter
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        FigureCanvasSVG(draw()).print_figure(
            file, format="svg", facecolor="none", metadata={"Date": None}
        )
    svg = file.getvalue().decode()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    return svg


_COLORED = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
_SETTINGS: dict[Any, Any] = {
    **dict.fromkeys(_COLORED, TEXT),
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": MUTED,
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
