"""How daemons end: SIGTERM in under half a minute whatever they do, and after kill -9 nobody is left over."""

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from daemons import Daemon, Federation, clinimeta, federation_of, held_at, pause_at, until
from small import PAIR, model_of, some, undisturbed_by

from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records

pytestmark = [
    pytest.mark.service,
    pytest.mark.long,
    pytest.mark.data,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("service"),
]
PROMISED_S = 30


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]) -> Iterator[Federation]:
    federation = federation_of(tmp_path_factory.mktemp("pair"), some(tables, *PAIR))
    yield federation
    federation.stop()


@pytest.fixture(scope="module")
def expected(study: Study, tables: Mapping[str, Records], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return model_of(study, some(tables, *PAIR), tmp_path_factory.mktemp("expected"))


def alive(pids: list[int]) -> list[int]:
    """Those that still run (a zombie does not)."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def of(daemon: Daemon) -> list[int]:
    """Its own pid and its children's."""
    assert daemon.process is not None
    pid = daemon.process.pid
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [pid, *(int(child) for task in tasks for child in (task / "children").read_text().split())]


def ended(daemon: Daemon) -> None:
    """SIGTERM, and nothing of it is left within the promised time."""
    pids = of(daemon)
    assert len(pids) > 1
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(PROMISED_S) == 0
    assert alive(pids) == []


def test_a_site_ends_on_sigterm_while_it_computes_and_nothing_is_lost(
    pair: Federation, study_text: str, expected: bytes, tmp_path: Path
) -> None:
    """In the middle of an answer that would take ten minutes."""
    site, marker = pair.sites["cleveland"], tmp_path / "held"
    site.stop()
    site.start(**pause_at("clinimeta.client.meta_gradients:meta_gradients", marker, skip=1))

    def disturb(_name: str) -> None:
        held_at(marker)
        ended(site)
        site.start(wait=False)

    undisturbed_by(pair, study_text, disturb, expected)


def test_the_coordinator_ends_on_sigterm_while_it_waits_and_nothing_is_lost(
    pair: Federation, study_text: str, expected: bytes
) -> None:
    away = pair.sites["hungary"]
    away.stop()

    def disturb(name: str) -> None:
        until(lambda: pair.experiment(name)["state"] in ("running", "waiting"), 60)
        ended(pair.hub)
        pair.hub.start()
        away.start(wait=False)

    undisturbed_by(pair, study_text, disturb, expected)


@pytest.mark.parametrize("who", ["coordinator", "site"])
def test_after_kill_9_nobody_is_left_and_a_stale_lock_does_not_hinder(
    pair: Federation, study_text: str, expected: bytes, who: str
) -> None:
    daemon = pair.hub if who == "coordinator" else pair.sites["cleveland"]
    lock = daemon.folder / f"{who}.pid"

    def disturb(name: str) -> None:
        until(lambda: pair.rounds(name), 60)
        pids = of(daemon)
        assert lock.read_text().strip() == str(pids[0])
        daemon.kill()
        until(lambda: alive(pids) == [], 10)
        assert lock.read_text().strip() == str(pids[0]), "stale"
        daemon.start(wait=False)

    undisturbed_by(pair, study_text, disturb, expected)


def test_a_parent_that_ends_at_once_leaves_no_child(pair: Federation) -> None:
    """Killed while its child is still loading, before it can ask the kernel to die with it."""
    daemon = pair.sites["hungary"]
    daemon.stop()
    daemon.start(wait=False)
    until(lambda: len(of(daemon)) > 1, 30, every_s=0.01)
    pids = of(daemon)
    daemon.kill()
    until(lambda: alive(pids) == [], 30)
    daemon.start()


def test_a_second_daemon_in_the_same_folder_is_refused(pair: Federation) -> None:
    for daemon in (pair.hub, pair.sites["cleveland"]):
        said = clinimeta(daemon.kind, "up", "--home", daemon.folder, expect=2)
        assert "running already" in said
        assert str(of(daemon)[0]) in said
        assert alive(of(daemon)) == of(daemon)


def test_down_stops_it(pair: Federation) -> None:
    for daemon in (*pair.sites.values(), pair.hub):
        pids = of(daemon)
        assert daemon.process is not None
        assert "stopped" in clinimeta(daemon.kind, "down", "--home", daemon.folder)
        daemon.process.wait(10)
        assert alive(pids) == []
        daemon.start()
