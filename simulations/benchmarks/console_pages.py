"""How long the console's pages take with a large store, and how it is with a hundred people on a live page.

    python -m clinimeta.simulations.benchmarks.console_pages --out console.csv

fills a coordinator's database with 200 hospitals and 1,000 rounds (`console_store`), serves the console
over loopback, and asks for each page one after the other. Then a hundred viewers follow a run by
server-sent events while rounds are written; each is told how long after the write it hears of it.
"""

import csv
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvicorn

from clinimeta.common.web.roles import Role
from clinimeta.server.chronicle_tables import changes, rounds
from clinimeta.server.console.app import SCREENS, open_console, served
from clinimeta.server.console.base import Console
from clinimeta.server.daemon import make_home
from clinimeta.server.database import experiments
from clinimeta.server.store import RunDir
from clinimeta.simulations import studies
from clinimeta.simulations.benchmarks.console_store import MASKED, PLAIN, fill

PASSWORD = "a console for a benchmark"  # noqa: S105 (of a database that is thrown away)
VALUES = {"site": "Hospital 000", "run": PLAIN}
GOAL_MS = 150.0


def filled(folder: Path, hospitals: int, count: int) -> Console:
    """A console over a large store."""
    home = make_home(
        folder / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )
    console = open_console(home, {name: studies.text_of(name) for name in studies.names()})
    fill(console.database, hospitals=hospitals, rounds=count)
    for row in console.database.rows(experiments.select()):
        RunDir.create(home.experiments / row["id"], studies.text_of("heart-disease"))
    console.accounts.use(console.accounts.link(Role.OPERATOR), "ada", PASSWORD)
    return console


def pages() -> list[str]:
    """Each screen's path; not a model, which needs a finished run."""
    query = {"/compare": f"?run={PLAIN}&run={MASKED}", "/new": "?study=heart-disease"}
    return [
        one.path.format(**VALUES) + query.get(one.path, "") for one in SCREENS if one.path != "/models/{run}"
    ]


def page_times(client: httpx.Client, path: str, repetitions: int) -> list[float]:
    """Milliseconds from request to last byte, over loopback."""
    client.get(path).raise_for_status()
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        client.get(path).raise_for_status()
        found.append((time.perf_counter() - began) * 1000)
    return found


def news_delays(
    console: Console, base: str, cookies: httpx.Cookies, viewers: int, writes: int
) -> list[float]:
    """Milliseconds from a write to each viewer's hearing of it."""
    heard: list[tuple[int, float]] = []
    ready, lock = threading.Barrier(viewers + 1), threading.Lock()

    def follow() -> None:
        with (
            httpx.Client(base_url=base, cookies=cookies, timeout=60) as client,
            client.stream("GET", f"/runs/{PLAIN}/news") as stream,
        ):
            lines = stream.iter_lines()
            next(lines)  # the stream has begun
            ready.wait()
            count = 0
            for line in lines:
                if line.startswith("data: "):
                    with lock:
                        heard.append((count, time.perf_counter()))
                    count += 1
                    if count == writes:
                        return

    threads = [threading.Thread(target=follow) for _ in range(viewers)]
    for thread in threads:
        thread.start()
    ready.wait()
    time.sleep(2)
    written = []
    for number in range(writes):
        with console.database.change() as connection:
            newest = connection.execute(
                changes.update().values(number=changes.c.number + 1).returning(changes.c.number)
            ).scalar_one()
            connection.execute(
                rounds.update()
                .where(rounds.c.experiment == PLAIN, rounds.c.round == number + 1)
                .values(change=newest)
            )
        written.append(time.perf_counter())
        time.sleep(4)
    for thread in threads:
        thread.join(60)
    return [(at - written[number]) * 1000 for number, at in heard]


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def main(
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    hospitals: Annotated[int, typer.Option(min=1)] = 200,
    count: Annotated[int, typer.Option("--rounds", min=1)] = 1000,
    repetitions: Annotated[int, typer.Option(min=2)] = 40,
    viewers: Annotated[int, typer.Option(min=1)] = 100,
) -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        console = filled(Path(folder), hospitals, count)
        config = uvicorn.Config(served(console, frozenset({"127.0.0.1"})), port=port, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        base = f"http://127.0.0.1:{port}"
        rows: list[tuple[str, int, float, float]] = []
        with httpx.Client(base_url=base, timeout=60) as client:
            client.post("/sign-in", data={"name": "ada", "password": PASSWORD})
            for path in pages():
                times = page_times(client, path, repetitions)
                rows.append((path, len(times), statistics.median(times), p95(times)))
            delays = news_delays(console, base, client.cookies, viewers, writes=3)
            rows.append((f"news to {viewers} viewers", len(delays), statistics.median(delays), p95(delays)))
        server.should_exit = True
        thread.join()
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("what", "measured", "median_ms", "p95_ms"))
        writer.writerows((what, n, f"{a:.1f}", f"{b:.1f}") for what, n, a, b in rows)
    for what, n, median, high in rows:
        mark = "" if what.startswith("news") or high < GOAL_MS else f"  over the goal of {GOAL_MS:g} ms"
        typer.echo(f"{what:<50} {n:>4}  median {median:8.1f} ms  p95 {high:8.1f} ms{mark}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
