"""The hospital's daemon: keeps Flower's SuperNode running and answers its tasks with the installed code."""

import logging
import os
import signal
import sys
import threading

import structlog
from flwr.app import Context

from clinimeta.client.app import client_app
from clinimeta.client.config import Home
from clinimeta.client.enrol import Enrolment, status
from clinimeta.client.keys import identity
from clinimeta.client.runner import answer_tasks
from clinimeta.client.site import Site
from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.errors import UserError
from clinimeta.common.flower_records import to_flower
from clinimeta.common.flower_tasks import Desk
from clinimeta.common.health import Health
from clinimeta.common.private_files import read_secret
from clinimeta.common.running import only_one
from clinimeta.common.supervision import Child, Supervisor, keep_loopback_direct, notify_ready

log = structlog.get_logger()

WELL_S, UNWELL_S = 10.0, 2.0
"""How often the coordinator is asked how this hospital stands: while all is well, and while it is not."""
UNCONNECTED = "Flower's SuperNode does not answer yet"
LAST_ANSWER_S = 10.0
"""How long an answer may still take after SIGTERM; given up then, it is asked for again at the next start."""


def supernode(home: Home) -> Child:
    """Flower's SuperNode: it carries messages, and runs nothing itself."""
    environment = {
        "FLWR_HOME": str(home.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [sys.executable, "-m", "clinimeta.client.supernode", str(home.path)]
    return Child("supernode", command, environment, stop_s=10.0)


def open_site(home: Home) -> Site:
    """The hospital as the installed code sees it.

    Raises:
        UserError: it is not enrolled, or its table cannot be read.
    """
    settings, enrolment = home.settings(), Enrolment.of(home)
    records = read_csv(home.path / settings.data.path)
    return Site(enrolment.site, records, device=settings.local.device)


class Standing(threading.Thread):
    """Asks the coordinator now and then how this hospital stands; `why` says what is not well."""

    def __init__(self, home: Home) -> None:
        super().__init__(daemon=True)
        self._home, self._ended = home, threading.Event()
        self.approved, self.why = False, "the coordinator was not asked yet"

    def run(self) -> None:
        """Until `stop`."""
        while True:
            before = self.why
            try:
                state, _ = status(self._home)
                self.approved, self.why = state == "approved", f"at the coordinator: {state}"
            except UserError as error:
                self.approved, self.why = False, f"{error.what}: {error.found}"
            if self.why != before:
                log.log(logging.INFO if self.approved else logging.WARNING, "how it stands", why=self.why)
            if self._ended.wait(WELL_S if self.approved else UNWELL_S):
                return

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()


def run(home: Home) -> None:
    """The daemon, until SIGTERM; what is being answered then is answered first, if it is quick.

    Raises:
        UserError: it runs already, or the hospital is not ready to.
    """
    settings, enrolment = home.settings(), Enrolment.of(home)
    own = identity(home, enrolment.site)
    site = open_site(home)
    desk = Desk(f"127.0.0.1:{settings.local.port}", read_secret(home.superexec_secret))
    stopping = threading.Event()

    def opened(_context: Context) -> Site:
        return site

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        signal.setitimer(signal.ITIMER_REAL, LAST_ANSWER_S)

    def give_up(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGALRM, give_up)
    keep_loopback_direct()
    with only_one(home.lock):
        health = Health(settings.local.health_port)
        supervisor = Supervisor([supernode(home)])
        health.start()
        standing = Standing(home)
        told = False

        def beat(connected: bool) -> None:
            nonlocal told
            supervisor.tend()
            if connected and standing.approved:
                if health.ready() and not told:
                    told = True
                    notify_ready()
                    log.info("ready", site=enrolment.site, pid=os.getpid())
            else:
                health.not_ready(UNCONNECTED if standing.approved else standing.why)

        standing.start()
        try:
            app = client_app(opened, lambda reply: to_flower(reply, own))
            answer_tasks(desk, app, stopping, beat)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            notify_ready("STOPPING=1")
            standing.stop()
            supervisor.stop()
            health.stop()
