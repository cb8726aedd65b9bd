"""How long the service takes and how large it is, with three hospitals on this machine; prints a CSV.

    PYTHONPATH=tests/support:tests/service CLINIMETA_DATA=... python tests/service/measure.py

Seconds a round with next to no computing, resident memory of each process, seconds from `invite` to ready,
and seconds that a kill -9 costs: until two more rounds are done, less two usual rounds.
"""

import csv
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from daemons import Daemon, Federation, enrol, make_hub, until

from clinimeta.common.tasks.table import Records
from clinimeta.simulations import studies
from clinimeta.simulations.datasets.heart_disease import HeartDisease
from clinimeta.simulations.datasets.locate import data_folder

SITES = ("cleveland", "hungary", "long_beach")
ROUNDS = 10


def main() -> None:
    tables = {name: found.records for name, found in HeartDisease().hospitals(data_folder(None)).items()}
    study = studies.text_of("heart-disease").replace("rounds = 100", f"rounds = {ROUNDS}\nquorum = 1.0", 1)
    study = study.replace("tasks = 4", "tasks = 3", 1).replace("inner_steps = 5", "inner_steps = 1", 1)
    rows: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        federation = make_hub(Path(folder))
        try:
            rows.append(("coordinator up to ready", seconds(federation.hub.start), "s"))
            rows += [
                (f"invite to ready, {name}", joined(federation, name, tables[name]), "s") for name in SITES
            ]
            took = rounds_of(federation, federation.run(study))
            usual = statistics.median(took[1:])
            rows.append((f"a round, median of {len(took) - 1}", usual, "s"))
            rows += [(f"resident memory, {name}", size, "MiB") for name, size in memory(federation)]
            for what, kill in kills(federation).items():
                name = federation.run(study)
                until(lambda name=name: len(federation.rounds(name)) >= 3, 120)
                began = time.monotonic()
                before = len(federation.rounds(name))
                kill()
                until(lambda name=name, n=before + 2: len(federation.rounds(name)) >= n, 240)
                rows.append((f"recovery, {what}", time.monotonic() - began - 2 * usual, "s"))
                rounds_of(federation, name)
        finally:
            federation.stop()
    writer = csv.writer(sys.stdout)
    writer.writerow(("what", "value", "unit"))
    writer.writerows((what, round(value, 1), unit) for what, value, unit in rows)


def seconds(what: Callable[[], object]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def joined(federation: Federation, name: str, records: Records) -> float:
    return seconds(lambda: enrol(federation, name, records).start())


def rounds_of(federation: Federation, name: str) -> list[float]:
    federation.finished(name, 300)
    return [row["seconds"] for row in federation.rounds(name)]


def memory(federation: Federation) -> list[tuple[str, float]]:
    site = federation.sites[SITES[0]]
    found = [("coordinator", federation.hub.process.pid), *federation.hub.children().items()]
    found += [("site", site.process.pid), *site.children().items()]
    return [(name, resident(pid)) for name, pid in found]


def resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def kills(federation: Federation) -> dict[str, Callable[[], None]]:
    def again(daemon: Daemon) -> Callable[[], None]:
        def kill() -> None:
            daemon.kill()
            daemon.start(wait=False)

        return kill

    def child(name: str) -> Callable[[], None]:
        return lambda: os.kill(federation.hub.children()[name], signal.SIGKILL)

    return {
        "a site daemon, started again at once": again(federation.sites[SITES[0]]),
        "the round loop": child("clinimeta.server.runner"),
        "the SuperLink": child("clinimeta.server.superlink"),
        "the whole coordinator, started again at once": again(federation.hub),
    }


if __name__ == "__main__":
    main()
