"""What left: the ledger's records, whether it is whole, the certificate, and what each study has cost."""

from dataclasses import dataclass

from clinimeta.client.activity import Line, by_study, refusals
from clinimeta.client.certificate import KINDS
from clinimeta.client.console.base import Console
from clinimeta.client.enrol import Enrolment
from clinimeta.client.hospital import budget_of, policy_of
from clinimeta.client.keys import identity
from clinimeta.client.ledger import SENT
from clinimeta.client.ledger_check import entry_in, read, text, verify
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen

SHOWN = 50


@dataclass(frozen=True, slots=True)
class Left:
    """A record: when, what kind, of which study, how large, and what came of it."""

    number: int
    at: str
    what: str
    study: str
    round: int | None
    bytes: int
    plan: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """The last records before a number, what they come to, and whether all are whole (`verdict`)."""

    records: tuple[Left, ...]
    count: int
    older: int | None
    whole: bool
    verdict: str
    studies: tuple[Line, ...]
    refused: dict[str, int]


@dataclass(frozen=True, slots=True)
class StudyCost:
    """What a plan has cost each patient so far (epsilon)."""

    plan: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class Budget:
    """What is spent of the hospital's lifetime budget; None before the daemon's first start."""

    spent: float | None
    limit: float | None
    delta: float | None
    studies: tuple[StudyCost, ...]


def ledger_screen(console: Console, _who: Who, before: int = 2**62) -> Ledger:
    """A page of the ledger."""
    home = console.home
    if not home.ledger.exists():
        return Ledger((), 0, None, True, "nothing has left this hospital yet", (), {})
    enrolment = Enrolment.of(home)
    records, _ = read(home.ledger)
    entries = [(one.number, entry) for one in records if (entry := entry_in(one)) is not None]
    shown = [pair for pair in reversed(entries) if pair[0] < before][: SHOWN + 1]
    own = identity(home, enrolment.site).public
    findings = verify(home.ledger, own, bytes.fromhex(enrolment.coordinator_key))
    lines = tuple(
        Left(
            number,
            entry.at,
            KINDS.get(entry.kind, entry.kind) if entry.outcome == SENT else f"refused: {entry.outcome}",
            entry.study,
            entry.round,
            entry.bytes,
            entry.plan,
        )
        for number, entry in shown[:SHOWN]
    )
    every = [entry for _, entry in entries]
    older = shown[SHOWN - 1][0] if len(shown) > SHOWN else None
    whole = findings.intact and findings.complete
    return Ledger(lines, len(records), older, whole, text(findings), by_study(every), refusals(every))


def budget_screen(console: Console, _who: Who) -> Budget:
    """The hospital's own book."""
    if not console.home.budget.exists():
        return Budget(None, None, None, ())
    kept = budget_of(console.home, policy_of(console.home))
    lifetime = kept.lifetime()
    limit = min(one.epsilon for one in (lifetime, kept.within) if one is not None)
    plans = sorted({entry.answer.study for entry in kept.history()})
    costs = tuple(StudyCost(plan, kept.spent(plan)) for plan in plans)
    return Budget(kept.spent(), limit, lifetime.delta, costs)


SCREENS = (
    Screen("/ledger", May.READ, "Ledger", ledger_screen, "ledger.html", nav=True),
    Screen("/budget", May.READ, "Budget", budget_screen, "budget.html", nav=True),
)
