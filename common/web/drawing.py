"""Plots as SVG text: curves, spreads over hospitals, one round's timeline, strips of presence, bars.

No script and no style inside: classes only, which the console's stylesheet colours in light and dark. Each
comes with a sentence for those who do not see it, and with its numbers as a table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 150.0, 12.0, 34.0
MOST = 400
"""More points than this are thinned, keeping the lowest and highest of each group."""
MARKS = ("circle", "square", "triangle", "diamond")
Value = float | None


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers of a plot."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: its SVG, what it shows in a sentence, its numbers."""

    title: str
    summary: str
    svg: str
    table: Table


@dataclass(frozen=True, slots=True)
class Box:
    """A metric over hospitals in one round: five numbers, and each hospital's own where known."""

    label: str
    least: float
    lower: float
    median: float
    upper: float
    most: float
    dots: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """What was used of what there is, with a label."""

    label: str
    used: float
    limit: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A hospital's part in a round: from when to when (seconds after its start), how it ended, why."""

    label: str
    begun: float
    ended: float
    how: str
    why: str = ""


def curves(
    name: str, title: str, series: Mapping[str, Sequence[tuple[float, Value]]], x: str = "round"
) -> Plot:
    """Lines over rounds, told apart by colour, dash and mark, and named at their ends."""
    known = {label: [(a, b) for a, b in points if is_number(b)] for label, points in series.items()}
    drawn = {label: points for label, points in known.items() if points}
    if not drawn:
        return _nothing(title)
    xs = [a for points in drawn.values() for a, _ in points]
    ys = [float(b or 0) for points in drawn.values() for _, b in points]
    frame = _Frame.around(min(xs), max(xs), min(ys), max(ys))
    parts, ends = [frame.axes(x)], []
    for number, (label, points) in enumerate(drawn.items()):
        kind = number % 8 + 1
        thin = thinned([(a, float(b or 0)) for a, b in points])
        path = "M" + "L".join(f"{frame.x(a):.1f} {frame.y(b):.1f}" for a, b in thin)
        dash = f' stroke-dasharray="{(None, "6 3", "2 3", "8 3 2 3")[number % 4]}"' if number % 4 else ""
        parts.append(f'<path class="line s{kind}" d="{path}"{dash}/>')
        last = thin[-1]
        parts.append(_mark(MARKS[number % 4], frame.x(last[0]), frame.y(last[1]), f"f{kind}"))
        ends.append((frame.y(last[1]), label, frame.x(last[0])))
    parts += [_text(WIDTH - RIGHT + 12, y + 4, _short(label)) for y, label in _apart(ends)]
    said = [
        f"{label}: {_number(points[0][1])} in {x} {points[0][0]:g}, "
        f"{_number(points[-1][1])} in {x} {points[-1][0]:g}"
        for label, points in drawn.items()
    ]
    empty = [label for label in known if label not in drawn]
    missing = f" No numbers of: {', '.join(empty)}." if empty else ""
    order = sorted({a for points in known.values() for a, _ in points})
    shown = order if len(order) <= MOST else order[:: math.ceil(len(order) / MOST)]
    columns = {label: dict(points) for label, points in known.items()}
    rows = tuple((f"{a:g}", *(_number(columns[label].get(a)) for label in columns)) for a in shown)
    return _plot(name, title, "; ".join(said) + "." + missing, parts, Table((x, *columns), rows))


def spread(name: str, title: str, boxes: Sequence[Box]) -> Plot:
    """For each round a box (quartiles, whiskers to the ends), and a dot for each hospital that is known."""
    if not boxes:
        return _nothing(title)
    frame = _Frame.around(0.0, float(len(boxes)), min(b.least for b in boxes), max(b.most for b in boxes))
    parts = [frame.axes("", ticks=False)]
    step = frame.x(1.0) - frame.x(0.0)
    for place, box in enumerate(boxes):
        middle, half = frame.x(place + 0.5), min(14.0, step * 0.35)
        parts.append(
            f'<path class="axis" d="M{middle:.1f} {frame.y(box.least):.1f}V{frame.y(box.most):.1f}"/>'
        )
        upper, lower = frame.y(box.upper), frame.y(box.lower)
        parts.append(
            f'<rect class="box" x="{middle - half:.1f}" y="{upper:.1f}" width="{2 * half:.1f}" '
            f'height="{max(1.0, lower - upper):.1f}"/>'
        )
        parts.append(
            f'<path class="mean" d="M{middle - half:.1f} {frame.y(box.median):.1f}h{2 * half:.1f}"/>'
        )
        for at, (site, value) in enumerate(sorted(box.dots.items())):
            shift = ((at * 37) % 11 - 5) / 5 * half * 0.8
            parts.append(
                f'<circle class="dot" cx="{middle + shift:.1f}" cy="{frame.y(value):.1f}" r="3.5">'
                f"<title>{escape(site)}: {_number(value)}</title></circle>"
            )
        if place % max(1, math.ceil(len(boxes) / 12)) == 0:
            parts.append(_text(middle, HEIGHT - BOTTOM + 16, box.label, "middle"))
    last = boxes[-1]
    summary = (
        f"In {last.label}: from {_number(last.least)} to {_number(last.most)}, half of the hospitals between "
        f"{_number(last.lower)} and {_number(last.upper)}, median {_number(last.median)}."
    )
    if last.dots:
        low, high = min(last.dots, key=lambda s: last.dots[s]), max(last.dots, key=lambda s: last.dots[s])
        summary += f" Lowest {low}, highest {high}."
    rows = tuple(
        (b.label, *map(_number, (b.least, b.lower, b.median, b.upper, b.most))) for b in boxes[-MOST:]
    )
    columns = ("round", "lowest", "lower quartile", "median", "upper quartile", "highest")
    return _plot(name, title, summary, parts, Table(columns, rows))


def timeline(name: str, title: str, segments: Sequence[Segment]) -> Plot:
    """A row for each hospital: from being asked to what came of it, in seconds."""
    if not segments:
        return _nothing(title)
    longest = max(0.1, *(s.ended for s in segments))
    left, row = 150.0, 18.0
    height = TOP + row * len(segments) + BOTTOM
    ticks = _ticks(0.0, longest)
    scale = (WIDTH - left - 90.0) / ticks[-1]
    parts = []
    for tick in ticks:
        x = left + tick * scale
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP:.1f}V{height - BOTTOM:.1f}"/>')
        parts.append(_text(x, height - BOTTOM + 16, f"{tick:g} s", "middle"))
    look = {"received": "ok", "refused": "no", "dropped": "no"}
    for place, one in enumerate(segments):
        y = TOP + row * place
        parts.append(_text(left - 8, y + 12, _short(one.label), "end"))
        parts.append(
            f'<rect class="{look.get(one.how, "wait")}" x="{left + one.begun * scale:.1f}" y="{y + 3:.1f}" '
            f'width="{max(2.0, (one.ended - one.begun) * scale):.1f}" height="{row - 6:.1f}">'
            f"<title>{escape(one.label)}: {escape(one.how)} {escape(one.why)}</title></rect>"
        )
        parts.append(_text(left + one.ended * scale + 6, y + 12, one.how))
    counts: dict[str, int] = {}
    for one in segments:
        counts[one.how] = counts.get(one.how, 0) + 1
    summary = (
        ", ".join(f"{count} {how}" for how, count in counts.items()) + f"; {longest:.1f} seconds in all."
    )
    rows = tuple((s.label, s.how, f"{s.begun:.1f}", f"{s.ended:.1f}", s.why) for s in segments)
    table = Table(("hospital", "outcome", "asked (s)", "until (s)", "why"), rows)
    return _plot(name, title, summary, parts, table, height)


def presence(name: str, title: str, intervals: Sequence[tuple[float, float]]) -> Plot:
    """A strip: when a hospital was there, in parts (0 to 1) of the time that is shown."""
    parts = ['<rect class="wait" x="0" y="0" width="120" height="14"/>']
    parts += [
        f'<rect class="ok" x="{120 * a:.1f}" y="0" width="{max(0.5, 120 * (b - a)):.1f}" height="14"/>'
        for a, b in intervals
    ]
    there = sum(b - a for a, b in intervals)
    rows = tuple((f"{a:.0%}", f"{b:.0%}") for a, b in intervals)
    return _plot(name, title, f"There {there:.0%} of the time.", parts, Table(("from", "to"), rows), 14, 120)


def bars(name: str, title: str, items: Sequence[Bar], unit: str) -> Plot:
    """What was used (filled) of each limit (outlined); over a limit it says so."""
    if not items:
        return _nothing(title)
    most = max(max(bar.used, bar.limit) for bar in items) or 1.0
    left, row = 190.0, 24.0
    height = TOP + row * len(items) + 4
    scale = (WIDTH - left - 130.0) / most
    parts = []
    for place, bar in enumerate(items):
        y = TOP + row * place
        over = bar.used > bar.limit
        parts.append(_text(left - 8, y + 13, _short(bar.label), "end"))
        look = "no" if over else "ok"
        parts.append(
            f'<rect class="{look}" x="{left}" y="{y + 3:.1f}" width="{bar.used * scale:.1f}" height="13"/>'
        )
        parts.append(
            f'<rect class="axis" x="{left}" y="{y + 3:.1f}" width="{bar.limit * scale:.1f}" height="13"/>'
        )
        words = f"{_number(bar.used)} of {_number(bar.limit)}{' over' if over else ''}"
        parts.append(_text(left + max(bar.used, bar.limit) * scale + 6, y + 13, words))
    said = "; ".join(f"{bar.label}: {_number(bar.used)} of {_number(bar.limit)} {unit}" for bar in items[:10])
    rows = tuple((b.label, _number(b.used), _number(b.limit), _number(b.limit - b.used)) for b in items)
    return _plot(name, title, said + ".", parts, Table(("", "used", "limit", "left"), rows), height)


def thinned(points: Sequence[tuple[float, float]], most: int = MOST) -> list[tuple[float, float]]:
    """At most so many points (or two more): of each group of neighbours the lowest and the highest, the ends.

    >>> thinned([(0, 1.0), (1, 9.0), (2, 2.0), (3, -5.0), (4, 1.0), (5, 1.0)], most=2)
    [(0, 1.0), (1, 9.0), (3, -5.0), (5, 1.0)]
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / max(1, most // 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        group = range(start, min(start + size, len(points)))
        kept |= {min(group, key=lambda i: points[i][1]), max(group, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def is_number(value: Value) -> bool:
    """Whether there is a number, and a finite one."""
    return value is not None and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float

    @staticmethod
    def around(left: float, right: float, low: float, high: float) -> "_Frame":
        ticks = _ticks(low, high)
        low, high = min(low, ticks[0]), max(high, ticks[-1])
        if high == low:
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        return _Frame(left, right if right > left else left + 1.0, low, high)

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x: str, *, ticks: bool = True) -> str:
        parts = []
        for tick in _ticks(self.low, self.high):
            y = self.y(tick)
            if TOP - 1 <= y <= HEIGHT - BOTTOM + 1:
                parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
                parts.append(_text(LEFT - 6, y + 4, f"{tick:.4g}", "end"))
        for tick in _ticks(self.left, self.right) if ticks else ():
            if float(tick).is_integer() and self.left <= tick <= self.right:
                parts.append(_text(self.x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
        if x:
            parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x, "middle"))
        return "".join(parts)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from within (or just at) a range: 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not span > max(1e-300, abs(high) * 1e-12, abs(low) * 1e-12):
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.floor(low / step)
    last = math.ceil(high / step)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _plot(
    name: str,
    title: str,
    summary: str,
    parts: Sequence[str],
    table: Table,
    height: float = HEIGHT,
    width: float = WIDTH,
) -> Plot:
    head = (
        f'<svg role="img" viewBox="0 0 {width:g} {height:g}" aria-labelledby="{name}-t {name}-d" '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(summary)}</desc>'
    )
    return Plot(title, summary, head + "".join(parts) + "</svg>", table)


def _nothing(title: str) -> Plot:
    return Plot(title, "There are no numbers yet.", "", Table((), ()))


def _mark(kind: str, x: float, y: float, look: str) -> str:
    match kind:
        case "circle":
            return f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case "square":
            return f'<rect class="{look}" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
        case "triangle":
            return f'<path class="{look}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>'
        case _:
            return f'<path class="{look}" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _apart(ends: Sequence[tuple[float, str, float]], least: float = 13.0) -> list[tuple[float, str]]:
    """Labels at their lines' heights, moved so that none covers another."""
    placed: list[tuple[float, str]] = []
    for y, label, _ in sorted(ends):
        placed.append((max(y, placed[-1][0] + least) if placed else y, label))
    over = placed[-1][0] - (HEIGHT - BOTTOM) if placed else 0.0
    return [(y - max(0.0, over), label) for y, label in placed]


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _number(value: Value) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "-"
