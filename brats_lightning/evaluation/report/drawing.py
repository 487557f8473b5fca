"""Drawing for the pages: figures as inline SVG, with the fonts and colours of the page, and as files for a paper.

Also how slices of scans look: their grey levels, and the colours of the regions.
"""

import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_REGION_COLOURS = {"wt": "#35d0ff", "tc": "#ffd23c", "et": "#ff5c5c", "rc": "#c58cff"}
_OTHER = "#7dff8a"  # of any other region
logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of each table of a font that a PDF does not need


@dataclass(frozen=True)
class Look:
    """The colours of a figure: of its text, of thin lines, and of the series."""

    ink: str
    faint: str
    series: tuple[str, ...]

    def colour(self, index: int) -> str:
        """The colour of the region, or of another series, at this place in its order."""
        return self.series[index % len(self.series)]


# Placeholders that `as_svg` replaces by the page's CSS variables, so that a figure suits the light and the dark theme.
PAGE = Look("#010203", "#010204", tuple(f"#0102{i + 5:02x}" for i in range(6)))
# The light theme's colours, as style.css has them.
PAPER = Look("#1c2430", "#d9dee5", ("#c2410c", "#1d6fb8", "#0f8a63", "#7c4dbd", "#b0268f", "#6b7280"))
_VARIABLES = {PAGE.ink: "var(--ink)", PAGE.faint: "var(--line)"}
_VARIABLES |= {colour: f"var(--series{i})" for i, colour in enumerate(PAGE.series)}
_STYLE = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # text stays text in other programs
    "text.parse_math": False,  # names may hold a $
    "svg.hashsalt": "brats-lightning",  # makes the SVG reproducible
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_INKED = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color")


@dataclass(frozen=True)
class Chart:
    """A figure of a report, drawn when and as it is needed, and the numbers in it."""

    title: str
    size: tuple[float, float]  # inches
    draw: Callable[[Figure, Look], None]
    table: Sequence[Sequence[Any]]  # the names of the columns, then the rows

    def svg(self) -> Markup:
        """For a page."""
        with new_figure(*self.size) as figure:
            self.draw(figure, PAGE)
            return as_svg(figure, self.title)

    def files(self) -> dict[str, bytes]:
        """For a paper: the content of an SVG and of a PDF file, by their endings."""
        svg, pdf = io.BytesIO(), io.BytesIO()
        with new_figure(*self.size, PAPER) as figure:
            self.draw(figure, PAPER)
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Title": self.title})
            FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None, "Title": self.title})
        return {"svg": svg.getvalue(), "pdf": pdf.getvalue()}


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Make the y axis one of named rows, at 0, 1, … from above, with a grid for their values."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def region_colour(region: str) -> str:
    """The colour of a region's outline."""
    return _REGION_COLOURS.get(region, _OTHER)


def grey(image: Shaped[np.ndarray, "y x"]) -> Float[np.ndarray, "y x"]:
    """Intensities scaled to 0 … 1 from the 1st to the 99.5th percentile of the non-zero pixels."""
    values = np.nan_to_num(image.astype(np.float64))
    inside = values[values != 0]
    low, high = np.percentile(inside, (1, 99.5)) if len(inside) else (0.0, 1.0)
    return np.where(values == 0, 0.0, np.clip((values - low) / max(high - low, 1e-6), 0, 1))


@contextmanager
def new_figure(width: float, height: float, look: Look = PAGE) -> Iterator[Figure]:
    """An empty figure of a size in inches, in the style of the pages."""
    with mpl.rc_context(_STYLE | dict.fromkeys(_INKED, look.ink) | {"grid.color": look.faint}):  # type: ignore[arg-type]  # stubs list every name
        yield Figure(figsize=(width, height), layout="constrained")


def as_pixels(figure: Figure) -> UInt8[np.ndarray, "h w 3"]:
    """The figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
