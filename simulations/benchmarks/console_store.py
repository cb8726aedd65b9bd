"""A coordinator's database as it is after a long training, for measuring the console's pages.

    python -m clinimeta.simulations.benchmarks.console_store hub.sqlite --sites 200 --rounds 1000

fills a new database with an experiment of so many rounds, an answer of each hospital in each, and a year of
presence; the same numbers give the same rows. It prints how large it is, how long that took, and how long
each screen's query takes.
"""

import hashlib
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from clinimeta.common.errors import UserError
from clinimeta.server import audit, chronicle_tables, enrolment, failures, round_views, views
from clinimeta.server.chronicle_page import spread_of
from clinimeta.server.database import Database, experiments, sites

START = datetime(2025, 11, 23, tzinfo=UTC)
ROUND_S = 60.0
PLAIN, MASKED, STUDY = "heart-disease-0000aa", "heart-disease-0000bb", "heart-disease"
TABLES = chronicle_tables
OUTCOMES = ("received",) * 17 + ("refused", "silent", "received")
CHUNK = 20_000
Rows = Iterator[dict[str, Any]]


def fill(database: Database, *, hospitals: int = 200, rounds: int = 1000, seed: int = 1) -> None:
    """Write it all; `rounds` of a training in clear, and as many under secure aggregation."""
    names = [f"Hospital {number:03d}" for number in range(hospitals)]
    with database.change() as connection:
        for table, rows in (
            (sites, _sites(names)),
            (experiments, _experiments(names, rounds)),
            (TABLES.rounds, _rounds(names, rounds, seed)),
            (TABLES.answers, _answers(names, rounds, seed)),
            (TABLES.attempts, _attempts(hospitals, rounds)),
            (TABLES.sightings, _sightings(names, seed)),
        ):
            while chunk := list(itertools.islice(rows, CHUNK)):
                connection.execute(table.insert(), chunk)
        connection.execute(TABLES.changes.update().values(number=2 * rounds))
        for name in names:
            enrolment.record(connection, "Ada", "approved", name)
    for process in ("daemon", "link", "round-loop-0"):
        failures.failed(
            database, process, "the process ended with exit code 1 after 7 s; it is started again"
        )


def queries(rounds: int) -> dict[str, Callable[[sa.Connection], object]]:
    """Each screen's query, as a console would ask it."""
    now, last = START + timedelta(days=365), max(0, rounds - views.PAGE)
    return {
        "federation": lambda c: views.federation(c, now),
        "site": lambda c: views.site(c, "Hospital 000", now),
        "runs": lambda c: views.runs(c),
        "runs in a state": lambda c: views.runs(c, state="running"),
        "runs of a study": lambda c: views.runs(c, study=STUDY),
        "run": lambda c: views.run(c, PLAIN),
        "rounds": lambda c: round_views.rounds_after(c, PLAIN, last),
        "rounds since": lambda c: round_views.rounds_since(c, PLAIN, 2 * rounds - 5),
        "spread": lambda c: round_views.spread(c, PLAIN, after=last),
        "timeline": lambda c: round_views.timeline(c, PLAIN, rounds // 2 + 1),
        "aggregation": lambda c: round_views.aggregation(c, MASKED, after=(last, 0)),
        "privacy": lambda c: round_views.privacy(c, STUDY, after=(MASKED, last)),
        "audit": lambda c: audit.audit(c),
        "audit with a word": lambda c: audit.audit(c, "hospital 00"),
        "failures": lambda c: failures.last_failures(c, process="link"),
        "last failure": lambda c: failures.last_failure(c),
    }


def main(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    hospitals: Annotated[int, typer.Option("--sites", min=2)] = 200,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 1000,
) -> None:
    """Fill a database, and measure."""
    if file.exists():
        raise UserError("the file is there already", where=str(file), remedy="choose another")
    began = time.perf_counter()
    database = Database.open(file)
    fill(database, hospitals=hospitals, rounds=rounds)
    taken = time.perf_counter() - began
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        typer.echo(
            f"{hospitals} sites, {rounds} rounds: {os.path.getsize(file) / 2**20:.1f} MiB, {taken:.1f} s"
        )
        for name, ask in queries(rounds).items():
            ask(connection)
            began = time.perf_counter()
            ask(connection)
            typer.echo(f"{name:<18} {(time.perf_counter() - began) * 1000:8.2f} ms")


def _at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def _sites(names: list[str]) -> Rows:
    for name in names:
        digest = hashlib.sha256(name.encode()).digest()
        keys = {"node_key": digest * 3, "identity_key": digest, "node_id": str(int.from_bytes(digest[:7]))}
        yield {"name": name, "state": "approved", "software": "clinimeta 0.1", "enrolled_at": _at(0), **keys}


def _experiments(names: list[str], rounds: int) -> Rows:
    for number, name in enumerate((PLAIN, MASKED)):
        yield {
            "id": name,
            "study": STUDY,
            "wanted": "running",
            "state": "running",
            "participants": json.dumps(names),
            "worker": "0",
            "round": rounds,
            "rounds": rounds,
            "made_at": _at(number),
            "changed_at": _at(rounds * ROUND_S),
        }


def _metrics(draw: random.Random, number: int) -> dict[str, float]:
    loss = 0.3 + 0.4 / (1 + number / 100) + draw.uniform(-0.1, 0.1)
    return {"query_accuracy": round(1.1 - loss, 6), "query_loss": round(loss, 6)}


def _outcomes(names: list[str], number: int, seed: int) -> dict[str, tuple[str, dict[str, float]]]:
    """Hospital -> how its answer in a round ended, and what it measured."""
    draw = random.Random(seed * 1_000_003 + number)  # noqa: S311 (invented rows)
    return {name: (draw.choice(OUTCOMES), _metrics(draw, number)) for name in names}


def _rounds(names: list[str], rounds: int, seed: int) -> Rows:
    for experiment, number in itertools.product((PLAIN, MASKED), range(1, rounds + 1)):
        found = _outcomes(names, number, seed)
        counted = {name: metrics for name, (phase, metrics) in found.items() if phase == "received"}
        means = _metrics(random.Random(number), number)  # noqa: S311 (invented rows)
        yield {
            "experiment": experiment,
            "round": number,
            "training": experiment,
            "started": _at(number * ROUND_S),
            "ended": _at((number + 1) * ROUND_S),
            "cohort": len(names),
            "accepted": len(counted),
            "metrics": json.dumps(means),
            "spread": json.dumps(spread_of(counted) if experiment == PLAIN else {}),
            "gradient_norm": 1 / number,
            "bytes_down": 40_000 * len(names),
            "bytes_up": 40_000 * len(counted),
            "seconds": ROUND_S,
            "epsilon": None if experiment == PLAIN else 8 * (number / rounds) ** 0.5,
            "change": number + (rounds if experiment == MASKED else 0),
        }


def _answers(names: list[str], rounds: int, seed: int) -> Rows:
    for number in range(1, rounds + 1):
        for name, (phase, metrics) in _outcomes(names, number, seed).items():
            refused = ("too_few_rows", "the site has too few rows for a single task, or for its own policy")
            code, sentence = refused if phase == "refused" else ("", "")
            yield {
                "experiment": PLAIN,
                "round": number,
                "attempt": 1,
                "site": name,
                "phase": phase,
                "asked": _at(number * ROUND_S),
                "at": _at(number * ROUND_S + 40 + 10 * metrics["query_loss"]),
                "seconds": None if phase == "silent" else 40 + 10 * metrics["query_loss"],
                "bytes_down": 40_000,
                "bytes_up": 40_000 if phase == "received" else 0,
                "code": code,
                "sentence": sentence,
                "metrics": json.dumps(metrics) if phase == "received" else "",
                "change": number,
            }


def _attempts(hospitals: int, rounds: int) -> Rows:
    phases = ("advert", "shares", "masked", "confirm", "unmask")
    for number in range(1, rounds + 1):
        times = {
            p: [_at(number * ROUND_S + 10 * i), _at(number * ROUND_S + 10 * i + 8)]
            for i, p in enumerate(phases)
        }
        yield {
            "experiment": MASKED,
            "round": number,
            "attempt": 1,
            "name": MASKED,
            "begun": _at(number * ROUND_S),
            "ended": _at((number + 1) * ROUND_S),
            "asked": hospitals,
            "threshold": 2 * hospitals // 3 + 1,
            "survivors": hospitals - 1,
            "lost": json.dumps({"masked": {"Hospital 001": "silent"}}),
            "phases": json.dumps(times),
            "change": rounds + number,
        }


def _sightings(names: list[str], seed: int) -> Rows:
    """A year in which each hospital starts its daemon anew about every week."""
    draw = random.Random(seed)  # noqa: S311 (invented rows)
    for name in names:
        since = 0.0
        while since < 365 * 86_400:
            until = min(since + draw.uniform(1, 13) * 86_400, 365 * 86_400)
            yield {
                "site": name,
                "since": _at(since),
                "until": _at(until),
                "standing": "approved",
                "software": "clinimeta 0.1",
                "rows_from": 100,
                "rows_to": 199,
            }
            since = until + draw.uniform(60, 3600)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
