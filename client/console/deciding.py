"""Studies: those that wait with what changed since the last one, what the policy would refuse; decide."""

from dataclasses import dataclass

from clinimeta.client.approvals import Approvals, Dossier
from clinimeta.client.console.base import Console, record
from clinimeta.client.hospital import open_hospital
from clinimeta.client.plan_words import describe, diff
from clinimeta.client.policy import Verdict
from clinimeta.client.site import Site
from clinimeta.common.errors import UserError
from clinimeta.common.plan import Plan
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Action, Change, Done, Screen


@dataclass(frozen=True, slots=True)
class Words:
    """A heading, and what is said under it."""

    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A plan that nobody has decided about: in words, against the last approved one, against the policy."""

    plan: str
    study: str
    words: tuple[Words, ...]
    changes: tuple[str, ...]
    first: bool
    refused: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision: what, when, by whom and why."""

    plan: str
    study: str
    what: str
    at: str
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Studies:
    """What waits, and what was decided, the newest first; `error`: why the policy cannot be asked."""

    waiting: tuple[Waiting, ...]
    decided: tuple[Decided, ...]
    error: str


def studies_screen(console: Console, _who: Who) -> Studies:
    """All plans that are known here."""
    approvals = Approvals(console.home.approvals)
    pending, site, error = approvals.pending(), None, ""
    if pending:
        try:
            site = open_hospital(console.home).site
        except UserError as found:
            error = f"{found.what} ({found.where})"
    waiting = tuple(_waiting(approvals, one, site) for one in pending)
    decided = [
        Decided(dossier.digest, dossier.plan.study, event.what, event.at.isoformat(), event.by, event.reason)
        for event, dossier in approvals.history()
        if event.what != "seen"
    ]
    return Studies(waiting, tuple(sorted(decided, key=lambda one: one.at, reverse=True)), error)


def approve_plan(console: Console, who: Who, body: Change, plan: str) -> Done:
    """Let the policy answer this plan."""
    found = Approvals(console.home.approvals).approve(plan, who.name, body.reason)
    record(console, who, body, "approved a study", found.digest)
    return Done(f"{found.plan.study} is approved")


def turn_down_plan(console: Console, who: Who, body: Change, plan: str) -> Done:
    """Refuse this plan from now on; also takes an approval back."""
    found = Approvals(console.home.approvals).withdraw(plan, who.name, body.reason)
    record(console, who, body, "turned a study down", found.digest)
    return Done(f"{found.plan.study} is turned down")


def refused_by(site: Site, plan: Plan) -> tuple[Verdict, ...]:
    """What the policy would say to a plan that is approved."""
    assert site.guard is not None
    found = site.guard.would_refuse(plan, identity=site.party is not None, budget=site.budget is not None)
    return tuple(one for one in found if one.code != "not_approved")


def _waiting(approvals: Approvals, one: Dossier, site: Site | None) -> Waiting:
    before = approvals.last_approved(one.plan)
    return Waiting(
        one.digest,
        one.plan.study,
        tuple(Words(heading, text) for heading, text in describe(one.plan)),
        tuple(map(str, diff(before, one.plan))) if before else (),
        before is None,
        refused_by(site, one.plan) if site is not None else (),
    )


SCREENS = (Screen("/studies", May.READ, "Studies", studies_screen, "studies.html", nav=True),)
ACTIONS = (
    Action("/studies/{plan}/approve", May.OPERATE, "Approve a study", Change, approve_plan, "/studies"),
    Action("/studies/{plan}/turn-down", May.OPERATE, "Turn a study down", Change, turn_down_plan, "/studies"),
)
