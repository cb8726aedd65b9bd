"""Keep child processes running: start, watch, start again, stop; each in its own process, by its own pid."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()

LONGEST_WAIT_S = 30.0
_PARENT = "CLINIMETA_PARENT"
STEADY_S = 60.0
"""A child that ran so long was well: after its end it is started again at once."""


@dataclass(frozen=True, slots=True)
class Child:
    """A program to keep running. `stop_s` is how long it may take to end on SIGTERM."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    stop_s: float = 20.0


@dataclass(slots=True)
class _Running:
    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    again_at: float = 0.0
    failures: int = 0


class Supervisor:
    """Children that are started again when they end, ever later while they keep ending early.

    `ended` hears of each that does: its name, its exit status (minus the signal that ended it) and how many
    seconds it had run.
    """

    def __init__(
        self,
        children: Sequence[Child],
        ended: Callable[[str, int, float], None] = lambda _name, _status, _lived_s: None,
    ) -> None:
        self._ended = ended
        self._running = {child.name: _Running(child) for child in children}
        self.ends = {child.name: 0 for child in children}
        """How often each has ended by itself."""

    def pids(self) -> dict[str, int]:
        """Name -> pid of those that run now."""
        alive = ((name, one.process) for name, one in self._running.items())
        return {name: p.pid for name, p in alive if p is not None and p.poll() is None}

    def tend(self) -> None:
        """Start whatever should run and does not; call it often."""
        now = time.monotonic()
        for one in self._running.values():
            if one.process is not None and one.process.poll() is not None:
                lived = now - one.started
                self.ends[one.child.name] += 1
                one.failures = 0 if lived > STEADY_S else one.failures + 1
                wait = min(LONGEST_WAIT_S, 2.0 ** (one.failures - 2)) if one.failures > 1 else 0.0
                log.warning(
                    "a process ended and is started again",
                    process=one.child.name,
                    status=one.process.returncode,
                    lived_s=round(lived, 1),
                    wait_s=wait,
                )
                self._ended(one.child.name, one.process.returncode, lived)
                one.process, one.again_at = None, now + wait
            if one.process is None and now >= one.again_at:
                one.process = _start(one.child)
                one.started = now

    def stop(self) -> None:
        """End all: SIGTERM in the reverse order, and SIGKILL for whoever takes too long."""
        running = [one for one in reversed(self._running.values()) if one.process is not None]
        for one in running:
            assert one.process is not None
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        for one in running:
            assert one.process is not None
            try:
                one.process.wait(max(0.0, told + one.child.stop_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("a process did not end and is killed", process=one.child.name)
                one.process.kill()
                one.process.wait()
            one.process = None


def _start(child: Child) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(  # noqa: S603 (our own programs, no shell)
        list(child.command),
        env={**os.environ, **child.environment, _PARENT: str(os.getpid())},
        stdin=subprocess.DEVNULL,
    )
    log.info("process started", process=child.name, pid=process.pid)
    return process


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however that happens (Linux).

    Nothing is lost by it that a crash would not lose, and whoever is started next finds the ports free.
    """
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.environ.get(_PARENT, str(os.getppid())) != str(os.getppid()):
        raise SystemExit("the parent has ended already")


def keep_loopback_direct() -> None:
    """Let no proxy come between processes of this machine, whatever HTTP_PROXY says: they share secrets."""
    said = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    hosts = [host.strip() for host in said.split(",") if host.strip()]
    hosts += [host for host in ("127.0.0.1", "localhost") if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def notify_ready(text: str = "READY=1") -> None:
    """Tell systemd (Type=notify) where it listens; nothing elsewhere."""
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(text.encode())
