"""Lines with intervals, and learning curves, as SVG that stands inside a page.

matplotlib draws with its SVG backend alone (no window, no global figure). What it wrote is then made
fit for a page: the ink follows the page's colour, each series' colour is a CSS variable with the
colour-blind safe palette of Okabe & Ito (2008) as its default, ids are unique, and a title and a
description stand for the picture.
"""

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from clinimeta.simulations.results import Estimate

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "currentColor", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))

WIDTH_IN, PLOT_IN, LEGEND_ROW_IN = 5.2, 2.75, 0.2
MARGINS_IN = {"left": 0.55, "right": 0.12, "top": 0.1, "bottom": 0.62}
MAX_POINTS = 150
"""Of a thin line; the mean is drawn in full."""

_INK = "#00fe00"
_SERIES = "#000f0{}"
_RC: Any = {  # matplotlib's types change with its version
    "text.parse_math": False,  # an arm may be called "$x$"
    "svg.fonttype": "none",
    "svg.hashsalt": "clinimeta",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True)
class Alternative:
    """What stands for a picture where it is not seen; `name` makes its ids unique in the page."""

    name: str
    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Series:
    """One arm's scores, one a support size; `style` numbers its colour, marker and dashes."""

    title: str
    style: int
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One arm over the rounds: the mean over its trainings, and each training (round -> value)."""

    title: str
    style: int
    mean: Mapping[int, float]
    trainings: tuple[Mapping[int, float], ...]


def shots_plot(alternative: Alternative, shots: Sequence[str], label: str, series: Sequence[Series]) -> str:
    """Scores against support sizes with interval bars, a line an arm; an `<svg>` element.

    The sizes stand at equal distances and the arms a little beside each other, so that bars do not hide.
    """

    def draw(axes: Axes) -> None:
        step = min(0.09, 0.5 / max(len(series), 1))
        for i, one in enumerate(series):
            x = [place + (i - (len(series) - 1) / 2) * step for place in range(len(shots))]
            finite = [_finite((e.value, e.low, e.high)) for e in one.estimates]
            style = _style(one.style)
            axes.plot(x, [value for value, _, _ in finite], **style, markersize=5.5, linewidth=1.6)
            axes.vlines(
                x,
                [low for _, low, _ in finite],
                [high for _, _, high in finite],
                colors=style["color"],
                linewidth=1.1,
                alpha=0.75,
            )
        axes.set_xticks(range(len(shots)), shots)
        axes.set_xlim(-0.4, len(shots) - 0.6)

    return _plot(alternative, label, [(one.title, one.style) for one in series], draw)


def rounds_plot(alternative: Alternative, curves: Sequence[Curve]) -> str:
    """Means over the rounds, a line an arm, with its single trainings thin behind it; an `<svg>` element."""

    def draw(axes: Axes) -> None:
        for one in curves:
            style = _style(one.style)
            behind = one.trainings if len(one.trainings) > 1 else ()
            for training in behind:
                points = sorted(training.items())
                points = points[:: math.ceil(len(points) / MAX_POINTS)]
                axes.plot(*_xy(points), color=style["color"], linewidth=0.6, alpha=0.35)
            every = max(1, len(one.mean) // 6)
            axes.plot(*_xy(sorted(one.mean.items())), **style, markersize=5, markevery=every, linewidth=1.8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))

    return _plot(alternative, "round of training", [(one.title, one.style) for one in curves], draw)


def _plot(alternative: Alternative, label: str, entries: Sequence[tuple[str, int]], draw: Any) -> str:
    columns = 2 if all(len(title) <= 27 for title, _ in entries) else 1
    legend_in = LEGEND_ROW_IN * math.ceil(len(entries) / columns)
    height_in = MARGINS_IN["top"] + PLOT_IN + MARGINS_IN["bottom"] + legend_in
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the reader's own matplotlibrc says
        mpl.rcParams.update(_RC)
        figure = Figure(figsize=(WIDTH_IN, height_in))
        FigureCanvasSVG(figure)
        left, right = MARGINS_IN["left"] / WIDTH_IN, 1 - MARGINS_IN["right"] / WIDTH_IN
        bottom = (MARGINS_IN["bottom"] + legend_in) / height_in
        axes = figure.add_axes((left, bottom, right - left, PLOT_IN / height_in))
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        axes.grid(axis="y", alpha=0.18, linewidth=0.6)
        draw(axes)
        axes.margins(y=0.06)
        axes.set_xlabel(label, labelpad=3)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        figure.legend(
            [Line2D([], [], **_style(style), markersize=5.5, linewidth=1.6) for _, style in entries],
            [_shortened(title) for title, _ in entries],
            loc="lower left",
            bbox_to_anchor=(left - 0.02, 0),
            ncols=columns,
            frameon=False,
            handlelength=3.2,
            borderpad=0.2,
            borderaxespad=0,
            labelspacing=0.35,
        )
        for artist in axes.findobj():
            artist.set_clip_on(False)  # clip paths are references by url()
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(out.getvalue(), alternative)


def _style(number: int) -> dict[str, Any]:
    return {
        "color": _SERIES.format(number % len(PALETTE)),
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def _xy(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [number for number, _ in points], _finite([value for _, value in points])


def _finite(values: Sequence[float]) -> list[float]:
    """What cannot be drawn leaves a gap; matplotlib's own margins overflow near the largest float."""
    return [value if abs(value) < 1e300 else math.nan for value in values]


def _shortened(title: str, longest: int = 60) -> str:
    return title if len(title) <= longest else title[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _inline(svg: bytes, alternative: Alternative) -> str:
    """The file that matplotlib wrote as an element of a page."""
    root = ET.fromstring(svg)  # noqa: S314  matplotlib wrote it a moment ago
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # a style element would reach the whole page
                parent.remove(child)
    wanted = {value[1:] for e in root.iter() for key, value in e.attrib.items() if key.endswith("}href")}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        element.text = element.text if element.tag == "text" else None
        element.attrib = {
            key.rpartition("}")[2]: _attribute(key.rpartition("}")[2], value, alternative.name)
            for key, value in element.attrib.items()
            if key != "id" or value in wanted
        }
    for index, tag in enumerate(("title", "desc")):
        words = ET.Element(tag, {"id": f"{alternative.name}-{tag}"})
        words.text = alternative.title if tag == "title" else alternative.description
        root.insert(index, words)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{alternative.name}-title {alternative.name}-desc",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    return ET.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value[1:]}"
    if key == "d":
        return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
    if key == "style":
        value = re.sub(r"font-family: [^;]*; ", "", value)  # the page's own typeface
        value = value.replace(_INK, "currentColor")
        for number, colour in enumerate(PALETTE):
            value = value.replace(_SERIES.format(number), f"var(--series-{number}, {colour})")
    return value
