"""Figures by matplotlib: inlined as SVG that follows the page's colours, or written as files.

A figure is drawn in the colours of light. In the page they become the page's variables, so that
the same drawing is right in dark; text stays text, in the page's own font.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from attnbench.report.page.palette import LIGHT
from attnbench.report.page.plain import one_line, plain, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 10.0
ROOM_FOR_TITLE_IN = 0.6
DOTS_PER_INCH = 200
LONGEST_LABEL = 40  # characters
LONGEST_TEXT = 90
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items() if name != "plain"}
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"font-family:[^;]*;? ?")
_SETTINGS: Any = {  # each matplotlib has its own set of names
    "svg.fonttype": "none",
    "svg.hashsalt": "attnbench",
    "text.parse_math": False,  # names are text, whatever is in them
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["soft"],
    "axes.edgecolor": LIGHT["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["ink"],
    "ytick.left": False,
    "legend.frameon": False,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn: `said` is what a reader who cannot see it needs to know.

    `title` and `note` stand above and below it in a file; the page has them in the caption.
    """

    name: str
    title: str
    note: str
    said: str
    height_in: float
    draw: Callable[[Figure], None]

    def inline(self) -> str:
        """An `<svg>` element for the page."""
        with _drawn(self) as figure:
            return _of_the_page(_svg(figure), self)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """A PNG and an SVG, with title and note."""
        files = (folder / f"{self.name}.png", folder / f"{self.name}.svg")
        with _drawn(self) as figure:
            figure.set_figheight(self.height_in + ROOM_FOR_TITLE_IN)
            figure.suptitle(plain(self.title), x=0.01, ha="left", fontsize=9)
            figure.supxlabel(plain(self.note), x=0.01, ha="left", fontsize=7, color=LIGHT["soft"])
            figure.set_facecolor(LIGHT["ground"])
            figure.savefig(files[0], dpi=DOTS_PER_INCH, metadata={"Software": None})
            files[1].write_bytes(_svg(figure))
        return files


def row_labels(axes: Axes, labels: Sequence[str], links: Sequence[str]) -> None:
    """Name the rows 0, 1, … from the top; each label leads to its record."""
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)))
    shown = [shorten(one_line(label), LONGEST_LABEL) for label in labels]
    for text, link in zip(axes.set_yticklabels(shown), links, strict=True):
        text.set_url(f"#{link}")


def log_ratio_axis(axes: Axes) -> None:
    """Ratios as multiples, at the round numbers that the data spans, 1 among them."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.995), max(high, 1.005)
    axes.set_xlim(low, high)
    axes.set_xticks(_round_ratios(low, high))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _round_ratios(low: float, high: float) -> list[float]:
    """The finest of some scales with at most seven steps in sight; 1 is in each."""
    for step in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        first, last = ceil((low - 1) / step), floor((high - 1) / step)
        if last - first < 7:
            return [round(1 + k * step, 6) for k in range(first, last + 1)]
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        in_sight = [tick for tick in ticks if low <= tick <= high]
        if len(in_sight) <= 8:
            return in_sight
    return in_sight


@contextmanager
def _drawn(drawing: Drawing) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # A browser has the glyphs that this font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH_IN, drawing.height_in), layout="constrained")
        drawing.draw(figure)
        for text in figure.findobj(Text):
            text.set_text(shorten(one_line(text.get_text()), LONGEST_TEXT))
        yield figure


def _svg(figure: Figure) -> bytes:
    buffer = BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue()


def _of_the_page(svg: bytes, drawing: Drawing) -> str:
    """The element alone, with names of its own, the page's colours and a text for screen readers.

    It is changed as a tree, so that no text in it can be taken for markup.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    _drop(root, "style")  # would hold for the whole page
    for element in root.iter():
        _adapt(element, f"{drawing.name}-")
    for measure in ("width", "height"):
        del root.attrib[measure]
    root.attrib |= {"role": "group", "aria-label": plain(drawing.said)}
    return ElementTree.tostring(root, encoding="unicode")


def _drop(root: ElementTree.Element, tag: str) -> None:
    for parent in list(root.iter()):
        for child in parent.findall(f"{{{_SVG}}}{tag}"):
            parent.remove(child)


def _adapt(element: ElementTree.Element, prefix: str) -> None:
    if "id" in element.attrib:
        element.set("id", prefix + element.attrib["id"])
    if element.tag == f"{{{_SVG}}}use":
        element.set(_LINK, f"#{prefix}{element.attrib[_LINK].removeprefix('#')}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{prefix}"))
    element.attrib.pop("target", None)  # a record lies on the same page
    if style := element.get("style"):
        own = _FONT.sub("", _COLOUR.sub(lambda found: _VARIABLES.get(found[0], found[0]), style))
        element.set("style", own)
