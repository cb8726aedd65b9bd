"""A federation of real daemons on loopback: what an operator and hospitals' IT would type, and kill -9."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinimeta.client.approvals import Approvals
from clinimeta.common.study import read_study
from clinimeta.common.tasks.table import Records

PAUSES = Path(__file__).parent / "pauses"
CLI = str(Path(sys.executable).parent / "clinimeta")


def clinimeta(*arguments: object, expect: int = 0, **environment: str) -> str:
    """Run the command; its stdout."""
    done = subprocess.run(
        [CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout if expect == 0 else done.stdout + done.stderr


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write_table(path: Path, records: Records) -> None:
    """A hospital's table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(records.cells)
        writer.writerows(zip(*records.cells.values(), strict=True))


def until(what: Any, patience_s: float, every_s: float = 0.1) -> Any:
    """Wait until `what()` is true; what it was."""
    end = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < end, f"not within {patience_s} s"
        time.sleep(every_s)
    return found


def approve(folder: Path, study: str) -> None:
    """As a person at the hospital approves a study."""
    read = read_study(study, "study.toml")
    approvals = Approvals(folder / "state" / "approvals")
    for arm in (read.trained, read.arm(read.primary)):
        plan = read.plan(arm, read.seeds[0])
        approvals.keep(plan, None)
        approvals.approve(plan.digest, "Ada Byron")


@dataclass(slots=True)
class Daemon:
    """A daemon: its folder and its command. `environment` is for the next start only."""

    folder: Path
    kind: str
    health: int
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True, **environment: str) -> None:
        """Start it in the foreground, and wait until it is ready."""
        with (self.folder / "test.log").open("ab") as log:
            self.process = subprocess.Popen(
                [CLI, self.kind, "up", "--home", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        if wait:
            until(self.ready, 60)

    def ready(self) -> bool:
        """Whether /readyz says so."""
        import httpx

        assert self.process is not None
        assert self.process.poll() is None, self.log()[-3000:]
        try:
            return httpx.get(f"http://127.0.0.1:{self.health}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def why(self) -> str:
        """What /readyz says."""
        import httpx

        try:
            return httpx.get(f"http://127.0.0.1:{self.health}/readyz").text
        except httpx.HTTPError:
            return ""

    def log(self) -> str:
        """All that it said."""
        return (self.folder / "test.log").read_text(errors="replace")

    def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def children(self) -> dict[str, int]:
        """What runs under it: a word of its command line -> pid."""
        assert self.process is not None
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                found[next(word for word in line if word.startswith("clinimeta."))] = int(pid)
        return found


@dataclass(slots=True)
class Federation:
    """A coordinator and its hospitals, enrolled."""

    root: Path
    hub: Daemon
    port: int
    control: int
    sites: dict[str, Daemon] = field(default_factory=dict)

    def run(self, study: str, *sites: str) -> str:
        """Start an experiment that a person at every hospital has approved; its id."""
        path = self.root / "study.toml"
        path.write_text(study)
        for site in self.sites.values():
            approve(site.folder, study)
        named = [word for site in sites for word in ("--site", site)]
        return clinimeta("run", path, "--home", self.hub.folder, *named).strip()

    def experiment(self, name: str) -> dict[str, Any]:
        """As `show --json` says."""
        shown: dict[str, Any] = json.loads(clinimeta("show", name, "--home", self.hub.folder, "--json"))
        return shown

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """What was written of each round."""
        path = self.hub.folder / "experiments" / name / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def finished(self, name: str, patience_s: float = 180) -> dict[str, Any]:
        """The experiment, once it is finished."""
        model = self.model_path(name)
        until(lambda: model.exists(), patience_s, 0.2)
        return until(lambda: (e := self.experiment(name))["state"] == "finished" and e, 20)

    def model_path(self, name: str) -> Path:
        """Where the model will be."""
        return self.hub.folder / "experiments" / name / "model.safetensors"

    def stop(self) -> None:
        """End all daemons that run."""
        for daemon in (*self.sites.values(), self.hub):
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.terminate()
        for daemon in (*self.sites.values(), self.hub):
            if daemon.process is not None:
                try:
                    daemon.process.wait(40)
                except subprocess.TimeoutExpired:
                    daemon.process.kill()


def make_hub(root: Path, name: str = "127.0.0.1") -> Federation:
    """A coordinator's folder, not started; its certificate is for `name`."""
    port, control, health = free_ports(3)
    clinimeta(
        *("coordinator", "init", root / "hub", "--name-in-certificate", name, "--host", "127.0.0.1"),
        *("--port", port, "--control-port", control, "--health-port", health),
    )
    return Federation(root, Daemon(root / "hub", "coordinator", health), port, control)


def sign_roster(federation: Federation) -> None:
    """A consortium signs the roster of all enrolled hospitals; each learns its key from people."""
    root, hub = federation.root, federation.hub.folder
    said = clinimeta("consortium", "init", root / "consortium")
    (root / "sites.json").write_text(clinimeta("coordinator", "list", "--json", "--home", hub))
    clinimeta("consortium", "sign", root / "consortium", "--sites", root / "sites.json")
    clinimeta("coordinator", "roster", root / "consortium" / "roster.json", "--home", hub)
    key = said.splitlines()[0].split()[-1]
    for site in federation.sites.values():
        settings = site.folder / "site.toml"
        settings.write_text(settings.read_text().replace('key = ""', f'key = "{key}"'))


def enrol(
    federation: Federation,
    name: str,
    records: Records,
    address: str = "",
    token: str = "",
    masked: bool = False,
    **environment: str,
) -> Daemon:
    """A hospital's folder with its table, enrolled and (where `token` is not given) approved, not started."""
    root = federation.root
    write_table(root / f"{name}.csv", records)
    token = token or clinimeta("coordinator", "invite", name, "--auto", "--home", root / "hub").strip()
    (root / f"{name}.token").write_text(token)
    local, health = free_ports(2)
    clinimeta(
        *("site", "init", root / name, "--coordinator", address or f"127.0.0.1:{federation.port}"),
        *("--data", root / f"{name}.csv", "--port", local, "--health-port", health),
    )
    settings = root / name / "site.toml"
    if not masked:
        settings.write_text(settings.read_text().replace('= "required"', '= "optional"'))
    clinimeta("site", "enrol", "--home", root / name, "--token-file", root / f"{name}.token", **environment)
    federation.sites[name] = Daemon(root / name, "site", health)
    return federation.sites[name]


def federation_of(root: Path, tables: Mapping[str, Records], *, masked: bool = False) -> Federation:
    """All of it, running."""
    federation = make_hub(root)
    try:
        federation.hub.start()
        for name, records in tables.items():
            enrol(federation, name, records, masked=masked)
        if masked:
            sign_roster(federation)
        for daemon in federation.sites.values():
            daemon.start(wait=False)
        for daemon in federation.sites.values():
            until(daemon.ready, 60)
    except BaseException:
        federation.stop()
        raise
    return federation


def pause_at(function: str, marker: Path, skip: int = 0) -> dict[str, str]:
    """Environment of a daemon that holds at `module:function`; see `pauses/sitecustomize.py`."""
    return {"PYTHONPATH": str(PAUSES), "CLINIMETA_TEST_PAUSE": f"{function}:{marker}:{skip}"}


def instead(function: str, other: str) -> dict[str, str]:
    """Environment of a daemon in which `other` (of a file in `pauses/`) is called in `function`'s place."""
    return {"PYTHONPATH": str(PAUSES), "CLINIMETA_TEST_REPLACE": f"{function}={other}"}


def let_go(marker: Path) -> None:
    """Let whoever holds there go on."""
    marker.with_name(marker.name + ".go").touch()


def held_at(marker: Path, patience_s: float = 60) -> int:
    """The pid of the process that holds there."""
    return int(until(lambda: marker.exists() and marker.read_text(), patience_s))
