"""Bars that stand side by side, and a line over the number of hospitals: SVG that also stands alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from clinimeta.simulations.plots import PALETTE, Alternative, Series, shots_plot
from clinimeta.simulations.results import Estimate

WIDTH, LABEL, NUMBER, ROW, GAP = 640, 230, 60, 18, 14
"""Pixels: the picture, the names on the left, the numbers on the right, a bar's row, between groups."""


def bars(alternative: Alternative, groups: Mapping[str, Mapping[str, float]], ours: str) -> str:
    """Horizontal bars under each title, label -> length; labels that begin with `ours` stand out."""
    longest = max(value for group in groups.values() for value in group.values())
    parts, y = list[str](), 0
    for title, group in groups.items():
        y += GAP + ROW
        parts.append(f'<text x="0" y="{y - 5}" font-weight="bold">{escape(title)}</text>')
        for label, value in group.items():
            parts += _bar(label, value, longest, y, PALETTE[0] if label.startswith(ours) else "currentColor")
            y += ROW
    return _svg(alternative, WIDTH, y + GAP, parts)


def over_sites(alternative: Alternative, panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> str:
    """One line plot above the other: what is measured -> engine -> number of sites -> value."""
    drawn = list[str]()
    for i, (what, engines) in enumerate(panels.items()):
        counts = sorted({count for points in engines.values() for count in points})
        series = [
            Series(engine, style, tuple(_exactly(points.get(count)) for count in counts))
            for style, (engine, points) in enumerate(engines.items())
        ]
        label = f"number of hospitals; up: {what}"
        part = Alternative(f"{alternative.name}-{i}", what, f"{what} for {', '.join(engines)}")
        drawn.append(shots_plot(part, [f"{count:,}" for count in counts], label, series))
    return stacked(alternative, drawn)


def _bar(label: str, value: float, longest: float, y: int, colour: str) -> Iterator[str]:
    length = (WIDTH - LABEL - NUMBER) * value / longest
    yield f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
    shape = f'x="{LABEL}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}"'
    yield f'<rect {shape} fill="{colour}" opacity="{0.9 if colour == PALETTE[0] else 0.45}"/>'
    yield f'<text x="{LABEL + length + 6:.1f}" y="{y + 12}">{value:.1f}</text>'


def stacked(alternative: Alternative, pictures: Sequence[str]) -> str:
    """Pictures of ours one above the other."""
    parts, y, widest = list[str](), 0.0, 0.0
    for picture in pictures:
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)
        assert found is not None, "every plot of ours has a view box"
        width, height = float(found[1]), float(found[2])
        place = f'<svg x="0" y="{y:g}" width="{width:g}" height="{height:g}"'
        parts.append(picture.replace("<svg", place, 1))
        y, widest = y + height + GAP, max(widest, width)
    return _svg(alternative, widest, y, parts)


def _svg(alternative: Alternative, width: float, height: float, parts: Sequence[str]) -> str:
    heads: dict[str, Any] = {"title": alternative.title, "desc": alternative.description}
    words = [f'<{tag} id="{alternative.name}-{tag}">{escape(text)}</{tag}>' for tag, text in heads.items()]
    names = " ".join(f"{alternative.name}-{tag}" for tag in heads)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-labelledby="{names}" font-family="sans-serif" font-size="12" fill="currentColor">',
            *words,
            *parts,
            "</svg>\n",
        ]
    )


def _exactly(value: float | None) -> Estimate:
    """A number without an interval; not a number where nothing was measured."""
    known = float("nan") if value is None else value
    return Estimate(known, known, known)
