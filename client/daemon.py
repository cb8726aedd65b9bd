"""The hospital's daemon: keeps Flower's SuperNode running and answers its tasks with the installed code."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version

import structlog
from flwr.app import Context, Message
from prometheus_client import Counter

from clinimeta.client.config import Home
from clinimeta.client.enrol import standing
from clinimeta.client.hospital import Hospital, open_hospital
from clinimeta.client.roster import refresh
from clinimeta.client.rotation import settle
from clinimeta.client.runner import answer_tasks
from clinimeta.client.verdicts import Verdicts
from clinimeta.common.enrolment import Facts
from clinimeta.common.errors import LedgerFileError, UserError
from clinimeta.common.flower_tasks import Desk
from clinimeta.common.health import Health
from clinimeta.common.private_files import read_secret
from clinimeta.common.running import only_one
from clinimeta.common.supervision import Child, Supervisor, keep_loopback_direct, notify_ready

log = structlog.get_logger()

WELL_S, UNWELL_S, AFTER_S = 10.0, 2.0, 5.0
"""When the coordinator is asked how this hospital stands: if all is well, if not, after an answer."""
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


def facts_of(hospital: Hospital) -> Facts:
    """What is told of the hospital for the operator's screens."""
    budget = hospital.site.budget
    assert budget is not None, "a hospital's daemon has one"
    limit = min(one.epsilon for one in (budget.lifetime(), budget.within) if one is not None)
    software = f"clinimeta {version('clinimeta')}"
    return Facts(software=software, policy=hospital.policy, budget_left=max(0.0, limit - budget.spent()))


class Asking(threading.Thread):
    """Asks the coordinator how this hospital stands, and keeps what comes back: receipts, the roster."""

    def __init__(self, home: Home, hospital: Callable[[], Hospital], again: threading.Event) -> None:
        super().__init__(daemon=True)
        self._home, self._hospital, self._again = home, hospital, again
        self._ended, self._wait_s = threading.Event(), UNWELL_S
        self._verdicts = Verdicts(home)
        self._soon, self._tells = threading.Event(), home.settings().coordinator.tell
        self.approved, self.why = False, "the coordinator was not asked yet"

    def run(self) -> None:
        """Until `stop`."""
        while not self._ended.is_set():
            try:
                self._ask()
            except UserError as error:
                self.approved, self.why = False, f"{error.what}: {error.found}"
            self._soon.wait(WELL_S if self.approved else UNWELL_S)
            if self._soon.is_set():
                self._soon.clear()
                self._ended.wait(AFTER_S)

    def soon(self) -> None:
        """Something has left: ask for its receipt in a while."""
        self._soon.set()

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._soon.set()

    def _ask(self) -> None:
        hospital = self._hospital()
        found = standing(self._home, facts_of(hospital) if self._tells else None)
        self.approved, self.why = found.state == "approved", f"at the coordinator: {found.state}"
        key = bytes.fromhex(hospital.enrolment.coordinator_key)
        if found.receipt is not None and not hospital.ledger.receive(*found.receipt, key):
            log.error("the coordinator's receipt does not fit the ledger", record=found.receipt[0].number)
        if refresh(self._home):
            self._again.set()
        if self._tells:
            try:
                self._verdicts.answer(hospital, found.proposals)
            except LedgerFileError as error:
                log.error("nothing is said of a plan: the ledger cannot be written", found=error.found)


class Answering:
    """Answers orders as the hospital's folder says; `reload` reads it again."""

    def __init__(self, home: Home, health: Health) -> None:
        self._home, self._health = home, health
        self.hospital = open_hospital(home)
        self._app = self.hospital.app()
        self.after: Callable[[], None] = lambda: None
        self._count = Counter("clinimeta_answers", "Orders that were answered", registry=health.registry)
        self._failed = Counter(
            "clinimeta_not_sent", "Answers that could not be written down", registry=health.registry
        )

    def __call__(self, message: Message, context: Context) -> Message:
        """The answer, written down already.

        Raises:
            LedgerFileError: it could not be, so it does not leave.
        """
        try:
            with self._health.working():
                reply = self._app(message, context)
        except LedgerFileError as error:
            self._failed.inc()
            log.error("nothing leaves: the ledger cannot be written", found=error.found, where=error.where)
            raise
        self._count.inc()
        self.after()
        return reply

    def reload(self) -> None:
        """Read settings, policy and table again; what is wrong with them leaves all as it was."""
        try:
            self.hospital = open_hospital(self._home)
        except UserError as error:
            log.error(
                "the new settings cannot be used; the old ones stay", what=error.what, where=error.where
            )
            self._health.note = f"the new settings cannot be used; the old ones stay: {error.what}"
            return
        self._health.note = ""
        self._app = self.hospital.app()
        log.info("settings, policy and table were read again", policy=self.hospital.policy)


def run(home: Home) -> None:
    """The daemon, until SIGTERM; what is being answered then is answered first. SIGHUP reads its folder.

    Raises:
        UserError: it runs already, or the hospital is not ready to.
    """
    local = home.settings().local
    desk = Desk(f"127.0.0.1:{local.port}", read_secret(home.superexec_secret))
    stopping, again = threading.Event(), threading.Event()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        signal.setitimer(signal.ITIMER_REAL, LAST_ANSWER_S)

    def give_up(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGHUP, lambda _number, _frame: again.set())
    keep_loopback_direct()
    with only_one(home.lock):
        settle(home)
        health = Health(local.health_port)
        answering = Answering(home, health)
        supervisor = Supervisor([supernode(home)])
        health.start()
        asking = Asking(home, lambda: answering.hospital, again)
        answering.after = asking.soon
        told = ""

        def tell(how: str) -> None:
            nonlocal told
            if how != told:
                told = how
                notify_ready(f"READY=1\nSTATUS={how}")
                log.info(how, site=answering.hospital.enrolment.site, pid=os.getpid())

        def beat(connected: bool) -> None:
            if asking.approved or supervisor.pids():  # Flower lets nobody else in, and its SuperNode gives up
                supervisor.tend()
            if again.is_set():
                again.clear()
                answering.reload()
            if connected and asking.approved:
                health.ready()
                tell("ready")
            else:
                why = UNCONNECTED if asking.approved else asking.why
                health.not_ready(why)
                tell(f"waiting: {why}")

        asking.start()
        try:
            answer_tasks(desk, answering, stopping, beat)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            notify_ready("STOPPING=1")
            asking.stop()
            supervisor.stop()
            health.stop()
