"""Plots: well-formed whatever is drawn, inside their frame, and their sentences tell the truth."""

import itertools
import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.web.drawing import (
    HEIGHT,
    WIDTH,
    Bar,
    Box,
    Plot,
    Segment,
    bars,
    curves,
    presence,
    spread,
    thinned,
    timeline,
)

values = st.one_of(st.none(), st.floats(-1e9, 1e9), st.just(math.nan), st.just(math.inf))
names = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())


def sound(plot: Plot, width: float = WIDTH) -> None:
    """It can be read as XML, everything lies inside, and no text says that there is no number."""
    if not plot.svg:
        return
    root = ElementTree.fromstring(plot.svg)  # noqa: S314 (our own)
    _, _, right, bottom = map(float, root.attrib["viewBox"].split())
    for one in root.iter():
        for name, most in (("x", right), ("cx", right), ("y", bottom), ("cy", bottom)):
            if name in one.attrib:
                assert -1 <= float(one.attrib[name]) <= max(most, width) + 1, one.attrib
        if one.tag.endswith("path"):
            for x, y in (
                re.findall(r"(-?[\d.]+) (-?[\d.]+)", one.attrib["d"]) if " s" in one.attrib["class"] else ()
            ):
                assert -1 <= float(x) <= right + 1
                assert -1 <= float(y) <= bottom + 1
        assert "style" not in one.attrib
        assert (one.text or "").strip() not in ("nan", "inf", "-inf")
    assert len(plot.table.columns) > 0
    assert all(len(row) == len(plot.table.columns) for row in plot.table.rows)


@given(st.dictionaries(names, st.lists(st.tuples(st.integers(1, 2000), values), max_size=30), max_size=10))
def test_any_curves_are_drawn(series: dict[str, list[tuple[int, float | None]]]) -> None:
    plot = curves("c", "Loss & co", series)  # type: ignore[arg-type]
    sound(plot)
    known = [
        name for name, points in series.items() if any(b is not None and math.isfinite(b) for _, b in points)
    ]
    assert (plot.svg == "") == (not known)


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5), max_size=20),
    st.dictionaries(names, st.floats(0, 1), max_size=5),
)
def test_any_spread_is_drawn(rows: list[list[float]], dots: dict[str, float]) -> None:
    boxes = []
    for number, row in enumerate(rows):
        least, lower, median, upper, most = sorted(row)
        inside = {site: least + part * (most - least) for site, part in dots.items()}
        boxes.append(Box(f"{number}", least, lower, median, upper, most, inside))
    sound(spread("s", "Loss", boxes))


@given(
    st.lists(
        st.tuples(
            names,
            st.floats(0, 1e4),
            st.floats(0, 1e4),
            st.sampled_from(("received", "refused", "asked")),
            names,
        ),
        max_size=30,
    )
)
def test_any_timeline_is_drawn(rows: list[tuple[str, float, float, str, str]]) -> None:
    sound(
        timeline("t", "Round 1", [Segment(n, min(a, b), max(a, b), how, why) for n, a, b, how, why in rows])
    )


@given(st.lists(st.tuples(names, st.floats(0, 1e6), st.floats(0, 1e6)), max_size=30))
def test_any_bars_are_drawn(rows: list[tuple[str, float, float]]) -> None:
    plot = bars("b", "Budget", [Bar(*row) for row in rows], "epsilon")
    sound(plot)
    assert plot.svg.count(" over<") == sum(used > limit for _, used, limit in rows)


def test_a_sentence_says_what_is_seen() -> None:
    plot = curves("c", "Loss", {"a": [(1, 0.5), (9, 0.25)], "b": [(1, None), (2, math.nan)]})
    assert plot.summary == "a: 0.5 in round 1, 0.25 in round 9. No numbers of: b."
    assert plot.table.rows == (("1", "0.5", "-"), ("9", "0.25", "-"))
    box = Box("7", 0.0, 1.0, 2.0, 3.0, 4.0, {"Ulm": 4.0, "Bern": 0.5})
    found = spread("s", "Loss", [box])
    assert (
        found.summary
        == "In 7: from 0 to 4, half of the hospitals between 1 and 3, median 2. Lowest Bern, highest Ulm."
    )
    assert presence("p", "Ulm", [(0.0, 0.25), (0.5, 0.75)]).summary == "There 50% of the time."


def test_names_of_hospitals_are_text() -> None:
    evil = '<script>alert(1)</script>"&'
    for plot in (
        curves("c", evil, {evil: [(1, 1.0)]}),
        timeline("t", evil, [Segment(evil, 0, 1, "refused", evil)]),
        spread("s", evil, [Box(evil, 0, 0, 0, 0, 1, {evil: 0.5})]),
        bars("b", evil, [Bar(evil, 1, 2)], "x"),
    ):
        assert "<script" not in plot.svg
        sound(plot)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_thinning_keeps_ends_and_extremes(numbers: list[float]) -> None:
    points = [(float(i), value) for i, value in enumerate(numbers)]
    kept = thinned(points, 100)
    assert len(kept) <= max(102, min(len(points), 102))
    assert {points[0], points[-1]} <= set(kept)
    assert min(b for _, b in kept) == min(numbers)
    assert max(b for _, b in kept) == max(numbers)
    assert kept == sorted(kept, key=lambda point: point[0])


def test_labels_at_the_ends_do_not_cover_each_other() -> None:
    plot = curves("c", "Loss", {f"run {n}": [(1, 0.5), (2, 0.5 + n * 1e-6)] for n in range(10)})
    heights = sorted(float(y) for y in re.findall(r'<text x="502.0" y="([\d.]+)"', plot.svg))
    assert len(heights) == 10
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 12.9
    assert heights[0] > 0
    assert heights[-1] <= HEIGHT
