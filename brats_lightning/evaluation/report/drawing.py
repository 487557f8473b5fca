"""Drawing for the pages: figures as inline SVG, with the fonts and colours of the page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Placeholders that `as_svg` replaces by the page's CSS variables, so that a figure suits the light and the dark theme.
INK, FAINT = "#010203", "#010204"
_SERIES = tuple(f"#0102{i + 5:02x}" for i in range(6))
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)"} | {c: f"var(--series{i})" for i, c in enumerate(_SERIES)}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold a $
    "svg.hashsalt": "brats-lightning",  # makes the SVG reproducible
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "legend.frameon": False,
}


def series_colour(index: int) -> str:
    """The colour of the region, or of another series, at this place in its order."""
    return _SERIES[index % len(_SERIES)]


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of a size in inches, in the style of the pages."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # stubs list every name
        yield Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure, title: str) -> Markup:
    """The figure's SVG, without the parts that only a separate file needs."""
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)  # the page sets the family
    text = re.sub(r' id="[^"]*_\d+"', "", text)  # matplotlib's names, equal in all figures and never used
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
