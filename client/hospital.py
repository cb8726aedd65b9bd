"""A hospital put together from its folder: table, policy, approvals, budget, ledger, gate."""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import structlog
from flwr.clientapp import ClientApp

from clinimeta.client.app import client_app
from clinimeta.client.approvals import Approvals
from clinimeta.client.budget import Budget
from clinimeta.client.config import Home
from clinimeta.client.enrol import Enrolment
from clinimeta.client.gate import Gate
from clinimeta.client.guard import Guard
from clinimeta.client.keys import identity
from clinimeta.client.ledger import Ledger
from clinimeta.client.masking import SqliteJournal
from clinimeta.client.policy import Policy, read_policy
from clinimeta.client.roster import roster_of
from clinimeta.client.site import Site
from clinimeta.client.sources.base import configured
from clinimeta.common.secagg.identity import fingerprint
from clinimeta.common.secagg.site import Site as Party

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Hospital:
    """What the daemon needs to answer; `policy` is the digest of the policy that it answers by."""

    enrolment: Enrolment
    site: Site
    ledger: Ledger
    gate: Gate
    policy: str

    def app(self) -> ClientApp:
        """Answers orders for this hospital; all that leaves goes through the gate."""
        return client_app(lambda _context: self.site, self.gate.release)


def policy_of(home: Home) -> Policy:
    """The hospital's policy.

    Raises:
        UserError: an unknown key, or a value that does not fit.
    """
    return read_policy(home.settings().policy, f"{home.path / 'site.toml'}, [policy]")


def policy_digest(policy: Policy) -> str:
    """What the ledger calls a policy by."""
    return hashlib.sha256(policy.model_dump_json().encode()).hexdigest()


def budget_of(home: Home, policy: Policy) -> Budget:
    """The hospital's privacy budget, made where nothing has ever left; never over what the policy says now.

    Raises:
        BudgetFileError: it is missing or damaged: a new one would forget what was spent.
    """
    if not (home.budget.exists() or home.ledger.exists() or home.former.exists()):
        log.info("a new privacy budget", epsilon=policy.lifetime.epsilon, delta=policy.lifetime.delta)
        Budget.create(home.budget, policy.lifetime)
    return replace(Budget.open(home.budget), within=policy.lifetime)


def open_hospital(home: Home) -> Hospital:
    """Read the hospital's table and state.

    Raises:
        UserError: it is not enrolled, or something in its folder cannot be used.
    """
    settings, enrolment, policy = home.settings(), Enrolment.of(home), policy_of(home)
    source = configured(settings.data, f"{home.path / 'site.toml'}, [data]")
    records = source.read(home.path)
    own = identity(home, enrolment.site)
    budget, digest = budget_of(home, policy), policy_digest(policy)
    ledger = Ledger(home.ledger, own)
    guard = Guard(policy, Approvals(home.approvals), len(records), lambda: ledger.answers_on(today()))
    roster = roster_of(home)
    party = None
    if roster is not None and roster.member(enrolment.site) is not None:
        party = Party(
            own, roster, guard.party_policy(budget=True), SqliteJournal(home.rounds), date.today, bytes(32)
        )
    site = Site(
        enrolment.site,
        records,
        device=settings.local.device,
        party=party,
        budget=budget,
        guard=guard,
        words=source.translation,
    )
    to = f"{enrolment.coordinator} ({fingerprint(bytes.fromhex(enrolment.coordinator_key))})"
    return Hospital(enrolment, site, ledger, Gate(ledger, own, to, lambda: digest, budget), digest)


def today() -> str:
    """The day (UTC, ISO 8601)."""
    return datetime.now(UTC).date().isoformat()
