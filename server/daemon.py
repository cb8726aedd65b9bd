"""The coordinator's daemon: keeps SuperLink and round loops running, and Flower in line with the database."""

import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError

from clinimeta.common.errors import UserError
from clinimeta.common.files import is_full, write_atomically
from clinimeta.common.health import Health
from clinimeta.common.private_files import make_private_folder, read_secret, write_secret
from clinimeta.common.running import only_one
from clinimeta.common.settings import quoted
from clinimeta.common.supervision import Child, Supervisor, keep_loopback_direct, notify_ready
from clinimeta.server import failures, pki
from clinimeta.server.config import TEMPLATE, Home
from clinimeta.server.control import Control
from clinimeta.server.database import Database
from clinimeta.server.experiments import LITTLE_MIB, NO_ROOM, has_room
from clinimeta.server.launcher import Launcher
from clinimeta.server.telemetry import Telemetry

log = structlog.get_logger()

TICK_S = 0.5


def make_home(
    path: Path, name: str, names: Sequence[str], *, host: str, port: int, control_port: int, health_port: int
) -> Home:
    """A new coordinator's folder: settings, certificates, secrets and an empty database.

    Raises:
        UserError: something is there already, or no host name is given.
    """
    if path.exists() and any(path.iterdir()):
        raise UserError(
            "the folder is not empty", where=str(path), expected="a new folder", remedy="choose another"
        )
    make_private_folder(path)
    home = Home(path)
    now = datetime.now(UTC)
    ca, ca_key = pki.new_ca(name, now)
    certificate, key = pki.new_server(ca, ca_key, names, now)
    for file, content in ((home.ca_certificate, ca), (home.certificate, certificate)):
        write_atomically(file, content)
    for file, secret in (
        (home.ca_key, ca_key),
        (home.key, key),
        (home.identity_key, secrets.token_bytes(32)),
        (home.superexec_secret, secrets.token_bytes(32)),
        (home.control_secret, secrets.token_bytes(32)),
    ):
        write_secret(file, secret)
    make_private_folder(home.flower)
    home.experiments.mkdir(mode=0o700)
    Database.open(home.database)
    text = TEMPLATE.format(
        name=quoted(name), host=quoted(host), port=port, control_port=control_port, health_port=health_port
    )
    write_atomically(path / "coordinator.toml", text.encode())
    home.settings()  # reads back
    return home


def children(home: Home, workers: int) -> list[Child]:
    """The link, and so many round loops."""
    folder = str(home.path)
    environment = {"FLWR_HOME": str(home.flower), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    link = Child("link", [sys.executable, "-m", "clinimeta.server.superlink", folder], environment)
    loops = [
        Child(
            f"round-loop-{i}",
            [sys.executable, "-m", "clinimeta.server.runner", folder, str(i)],
            environment,
        )
        for i in range(workers)
    ]
    return [link, *loops]


def _ended(database: Database) -> Callable[[str, int, float], None]:
    def note(process: str, status: int, lived_s: float) -> None:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit code {status}"
        what = f"the process {how} after {lived_s:.0f} s; it is started again"
        failures.failed(database, process, what)

    return note


def run(home: Home) -> None:
    """The daemon, until SIGTERM.

    Raises:
        UserError: it runs already, or the folder is not as it should be.
    """
    settings = home.settings()
    for secret in (home.key, home.identity_key, home.superexec_secret, home.control_secret):
        read_secret(secret)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    keep_loopback_direct()
    with only_one(home.lock):
        database = Database.open(home.database)
        launcher = Launcher(database)
        supervisor = Supervisor(children(home, settings.rounds.workers), _ended(database))
        health = Health(settings.health.port)
        health.registry.register(Telemetry(home, database, supervisor.ends))
        health.start()
        try:
            while not stopping.is_set():
                supervisor.tend()
                try:
                    if not has_room(home):
                        health.not_ready(f"less than {LITTLE_MIB} MiB left on the disk of {home.path}")
                        launcher.hold(NO_ROOM)
                        stopping.wait(TICK_S)
                        continue
                    with Control.of(home) as control:
                        launcher.reconcile(control)
                except httpx.HTTPError as error:
                    health.not_ready(f"the link does not answer: {type(error).__name__}")
                except SQLAlchemyError as error:
                    if not is_full(error):
                        raise
                    health.not_ready(f"no room on the disk of {home.path}")
                else:
                    if health.ready():
                        notify_ready()
                        log.info("ready", address=f"{settings.public.host}:{settings.public.port}")
                stopping.wait(TICK_S)
        except Exception as error:
            failures.told(database, "daemon", error)
            raise
        finally:
            notify_ready("STOPPING=1")
            supervisor.stop()
            health.stop()
