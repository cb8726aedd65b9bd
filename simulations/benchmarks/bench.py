"""One `clinimeta bench` from request to files: measure, write CSV and SVG, show a table.

    clinimeta bench adaptation && clinimeta bench rounds && clinimeta bench secagg
    python -m clinimeta.simulations.benchmarks.bench runs/bench

The second keeps the CSVs as `simulations/benchmarks/results/bench-*.csv` and prints the tables of
docs/benchmarks.md.
"""

import argparse
import csv
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clinimeta.common.files import write_atomically
from clinimeta.simulations.benchmarks import adaptation, privacy_utility, rounds, secagg
from clinimeta.simulations.benchmarks.measuring import RESULTS, machine, write_csv
from clinimeta.simulations.benchmarks.pictures import bars, over_sites, stacked
from clinimeta.simulations.plots import Alternative, Series, shots_plot
from clinimeta.simulations.results import Estimate

Rows = list[dict[str, Any]]
LATER_ROUNDS = 5
SECAGG_TURNS = 5
ADAPTATION_COLUMNS = {
    "setting": "setting",
    "candidate": "an outer step by",
    "cpu_s": "CPU s",
    "wall_s": "wall s",
    "times_cpu": "times CPU",
    "times_wall": "times wall",
    "trace_cpu_s": "tracing, CPU s",
    "pays_after": "pays after",
}
ROUNDS_COLUMNS = {
    "computes": "computes",
    "engine": "a round by",
    "sites": "sites",
    "cpu_s": "CPU s",
    "wall_s": "wall s",
    "first_cpu_s": "first, CPU s",
    "peak_mib": "peak MiB",
}
SECAGG_COLUMNS = {
    "setting": "setting",
    "sites": "sites",
    "dropped": "dropped",
    "client_ms": "client, ms",
    "mask_ms": "masks, ms",
    "keystream_ms": "keystream, ms",
    "server_ms": "server, ms",
    "float_sum_ms": "float sum, ms",
    "server_checks_ms": "server's checks, ms",
    "upload_times_float32": "upload / float32",
    "flower_client_times": "Flower's client, times",
    "flower_server_times": "Flower's server, times",
}
PRIVACY_SHOWN = ("setting", "learns", "epsilon", "value", "low", "high", "difference")
PRIVACY_COLUMNS = {
    "setting": "setting",
    "learns": "learns",
    "epsilon": "epsilon",
    "numbers": "numbers",
    "signal_over_noise": "signal / noise",
    "value": "score",
    "low": "low",
    "high": "high",
    "difference": "minus unprotected",
    "difference_low": "low",
    "difference_high": "high",
}
"""Column of the CSV -> its heading, in the terminal and in docs/benchmarks.md."""

SECAGG_SHOWN = ("setting", "sites", "dropped", "client_ms", "keystream_ms", "server_ms", "float_sum_ms")
"""Its columns that a terminal has room for."""
SECAGG_CURVES = {
    "CPU ms of a hospital": {
        "clinimeta": "client_ms",
        "keystream alone": "keystream_ms",
        "Flower's SecAgg+": "flower_client_ms",
    },
    "CPU ms of the coordinator": {
        "clinimeta": "server_ms",
        "sum without masks": "float_sum_ms",
        "Flower's SecAgg+": "flower_server_ms",
    },
}
"""What is drawn: axis -> curve -> column of the CSV."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    out: Path
    quick: bool = False
    argv: tuple[str, ...] = ()
    data: Path | None = None


def bench_adaptation(request: Request, settings: Sequence[adaptation.Setting] | None = None) -> Rows:
    """Measure outer steps; `settings` instead of the usual ones."""
    chosen = list(settings or adaptation.settings(quick=request.quick))
    rows = _bench(request, "adaptation", lambda notify: adaptation.measure(chosen, notify), _adaptation_svg)
    Console(stderr=True).print(_table(rows, ADAPTATION_COLUMNS))
    return rows


def bench_rounds(request: Request, candidates: Sequence[rounds.Candidate] | None = None) -> Rows:
    """Measure simulated rounds; `candidates` instead of the usual ones."""
    chosen = list(candidates or rounds.candidates(quick=request.quick))
    later = 2 if request.quick else LATER_ROUNDS
    rows = _bench(request, "rounds", lambda notify: rounds.measure(chosen, later, notify), _rounds_svg)
    Console(stderr=True).print(_table(rows, ROUNDS_COLUMNS))
    return rows


def bench_secagg(request: Request, settings: Sequence[secagg.Setting] | None = None) -> Rows:
    """Measure secure aggregation; `settings` instead of the usual ones."""
    chosen = list(settings or secagg.settings(quick=request.quick))
    turns = 2 if request.quick else SECAGG_TURNS
    rows = _bench(request, "secagg", lambda notify: secagg.measure(chosen, turns, notify), _secagg_svg)
    Console(stderr=True).print(_table(rows, {key: SECAGG_COLUMNS[key] for key in SECAGG_SHOWN}))
    return rows


def bench_privacy_utility(
    request: Request, settings: Sequence[privacy_utility.Setting] | None = None
) -> Rows:
    """Measure what promises cost in accuracy; `settings` instead of the usual ones."""
    chosen = list(settings or privacy_utility.settings(request.data, quick=request.quick))
    rows = _bench(
        request,
        "privacy-utility",
        lambda notify: privacy_utility.measure(chosen, request.data, notify),
        _privacy_svg,
    )
    Console(stderr=True).print(_table(rows, {key: PRIVACY_COLUMNS[key] for key in PRIVACY_SHOWN}))
    return rows


def markdown(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A table of docs/benchmarks.md: column -> heading."""
    lines = ["| " + " | ".join(columns.values()) + " |", "| --- " * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: object) -> str:
    """Three significant digits; nothing for None.

    >>> cell(0.0123456), cell(1234.5), cell(None), cell("pfl"), cell(10000)
    ('0.0123', '1,234', '', 'pfl', '10,000')
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _bench(
    request: Request,
    name: str,
    measure: Callable[[Callable[[str], None]], Rows],
    picture: Callable[[Rows], str],
) -> Rows:
    torch.set_num_threads(1)
    request.out.mkdir(parents=True, exist_ok=True)  # before minutes of work
    console = Console(stderr=True)
    record = machine()
    rows = measure(lambda what: console.print(Text(what, style="dim")))
    write_csv(request.out / f"{name}.csv", shlex.join(["clinimeta", *request.argv]), record, rows)
    write_atomically(request.out / f"{name}.svg", picture(rows).encode())
    write_atomically(request.out / "machine.json", (json.dumps(record, indent=1) + "\n").encode())
    console.print(Text(f"{request.out}/{name}.csv, {name}.svg, machine.json"))
    return rows


def _table(rows: Rows, columns: Mapping[str, str]) -> Table:
    """A section for each value of the first column, which stands above its rows."""
    (group, _), *others = columns.items()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for key, heading in others:
        table.add_column(
            Text(heading), overflow="fold", justify="left" if isinstance(rows[0][key], str) else "right"
        )
    for title in dict.fromkeys(row[group] for row in rows):
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for row in rows:
            if row[group] == title:
                table.add_row(*(Text(cell(row[key])) for key, _ in others))
    return table


def _adaptation_svg(rows: Rows) -> str:
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        groups.setdefault(row["setting"], {})[row["candidate"]] = row["times_cpu"]
    text = f"How many times as fast as {rows[0]['reference']}, by CPU time of one outer step of MAML."
    words = Alternative("bench-adaptation", "MAML's outer step: speed", text)
    return bars(words, groups, ours=adaptation.ENGINE)


def _rounds_svg(rows: Rows) -> str:
    """The curves of those that compute what the first does."""
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        if row["computes"] == rows[0]["computes"]:
            for what, key in {"CPU ms a hospital": "cpu_ms_a_site", "peak memory, MiB": "peak_mib"}.items():
                panels.setdefault(what, {}).setdefault(row["engine"], {})[row["sites"]] = row[key]
    text = f"A simulated round of {rows[0]['computes']}: CPU time a hospital and peak memory."
    return over_sites(Alternative("bench-rounds", "A simulated round", text), panels)


def _secagg_svg(rows: Rows) -> str:
    """Nobody dropped out, the length with most rows."""
    kept = [row for row in rows if not row["dropped"]]
    lengths = [row["parameters"] for row in kept]
    length = max(reversed(lengths), key=lengths.count)
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for what, parts in SECAGG_CURVES.items():
        for label, key in parts.items():
            points = {row["sites"]: row[key] for row in kept if row["parameters"] == length and row[key]}
            if points:
                panels.setdefault(what, {})[label] = points
    text = f"Secure aggregation of {length:,} parameters: CPU time of a hospital and of the coordinator."
    return over_sites(Alternative("bench-secagg", "Secure aggregation", text), panels)


def _privacy_svg(rows: Rows) -> str:
    """A plot for each setting: the score over epsilon; the unprotected one is a point of its own."""
    drawn = list[str]()
    for i, setting in enumerate(dict.fromkeys(row["setting"] for row in rows)):
        here = [row for row in rows if row["setting"] == setting]
        epsilons = list(dict.fromkeys(row["epsilon"] for row in here))
        series = []
        for style, learns in enumerate(dict.fromkeys(row["learns"] for row in here)):
            found = {row["epsilon"]: row for row in here if row["learns"] == learns}
            series.append(Series(learns, style, tuple(_estimate(found.get(e)) for e in epsilons)))
        part = Alternative(f"bench-privacy-{i}", setting, f"{setting} for each epsilon")
        drawn.append(shots_plot(part, epsilons, f"epsilon; up: {setting}", series))
    text = "Scores against the promise to each patient, with intervals."
    return stacked(Alternative("bench-privacy", "Privacy and utility", text), drawn)


def _estimate(row: Mapping[str, Any] | None) -> Estimate:
    return Estimate(*((row["value"], row["low"], row["high"]) if row else [float("nan")] * 3))


def _read(text: str) -> Rows:
    """The rows of a CSV of ours, numbers as numbers."""
    return [
        {key: _number(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines()[1:])
    ]


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def main() -> None:
    """Keep the CSVs that a folder has and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    tables = {
        "adaptation": ADAPTATION_COLUMNS,
        "rounds": ROUNDS_COLUMNS,
        "secagg": SECAGG_COLUMNS,
        "privacy-utility": PRIVACY_COLUMNS,
    }
    for name, columns in tables.items():
        if not (folder / f"{name}.csv").exists():
            continue
        text = (folder / f"{name}.csv").read_text(encoding="utf-8")
        write_atomically(RESULTS / f"bench-{name}.csv", text.encode())
        print(markdown(_read(text), columns), end="\n\n")


if __name__ == "__main__":
    main()
