"""Status: how this hospital stands, in one sentence; what waits, what is left, what a check finds."""

from dataclasses import dataclass

import httpx

from clinimeta.client.approvals import Approvals
from clinimeta.client.check import examine
from clinimeta.client.console.base import Console
from clinimeta.client.enrol import Enrolment
from clinimeta.client.hospital import budget_of, policy_of
from clinimeta.common.errors import UserError
from clinimeta.common.findings import Finding
from clinimeta.common.running import running
from clinimeta.common.web.drawing import Bar, Plot, bars
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen

ASKED_S = 2.0


@dataclass(frozen=True, slots=True)
class Status:
    """`sentence` says it all; `well`: nothing is to be done. Budget: epsilon, None before the first start."""

    sentence: str
    well: bool
    site: str
    coordinator: str
    waiting: int
    spent: float | None
    limit: float | None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check finds, faults first; it asks the coordinator, too."""

    findings: tuple[Finding, ...]


def status_screen(console: Console, _who: Who) -> Status:
    """How it stands now, as far as this machine knows."""
    home = console.home
    try:
        enrolment = Enrolment.of(home)
    except UserError:
        return Status(
            "This hospital is not enrolled yet: clinimeta site enrol.", False, "", "", 0, None, None
        )
    waiting = len(Approvals(home.approvals).pending())
    spent, limit = _budget(console)
    daemon = _daemon(console)
    studies = (
        f"; {waiting} {'study waits' if waiting == 1 else 'studies wait'} for your decision"
        if waiting
        else ""
    )
    return Status(
        f"{enrolment.site} {daemon}{studies}.",
        daemon.startswith("takes part") and not waiting,
        enrolment.site,
        enrolment.coordinator,
        waiting,
        spent,
        limit,
    )


def check_screen(console: Console, _who: Who) -> Checked:
    """The same as `clinimeta site check`."""
    order = {"fault": 0, "warning": 1, "good": 2}
    return Checked(tuple(sorted(examine(console.home), key=lambda one: order[one.state])))


def _daemon(console: Console) -> str:
    if running(console.home.lock) is None:
        return "takes no part: its daemon does not run (clinimeta site up)"
    port = console.home.settings().local.health_port
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=ASKED_S, trust_env=False)
    except httpx.HTTPError:
        return "has a daemon that does not answer: look at its log"
    text = answer.text.strip().replace("\n", "; ")
    return "takes part" if answer.status_code == 200 and text == "ready" else f"is not ready: {text}"


def _budget(console: Console) -> tuple[float | None, float | None]:
    if not console.home.budget.exists():
        return None, None
    kept = budget_of(console.home, policy_of(console.home))
    limits = [one.epsilon for one in (kept.lifetime(), kept.within) if one is not None]
    return kept.spent(), min(limits)


def _draw(view: Status) -> dict[str, Plot]:
    if view.spent is None or view.limit is None:
        return {}
    return {
        "budget": bars("budget", "Privacy budget", [Bar("all studies", view.spent, view.limit)], "epsilon")
    }


SCREENS = (
    Screen("/", May.READ, "Status", status_screen, "status.html", nav=True, draw=_draw),
    Screen("/check", May.READ, "Check", check_screen, "check.html", nav=True),
)
