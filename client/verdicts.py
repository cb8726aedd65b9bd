"""What this hospital would answer to plans that it is asked about before a run; no data is read for that.

A plan that nobody here knows waits for a person from then on, as one does that is asked for in a run. What is
said is in the ledger first, as everything is that leaves.
"""

import dataclasses

import structlog

from clinimeta.client.approvals import Approvals
from clinimeta.client.config import Home
from clinimeta.client.enrol import proposed, tell_verdict
from clinimeta.client.hospital import Hospital
from clinimeta.client.rules import PLAN_BYTES
from clinimeta.common.enrolment import Verdict
from clinimeta.common.errors import StudyError
from clinimeta.common.plan import Plan
from clinimeta.common.receipts import CHECKPOINT_BYTES

log = structlog.get_logger()


@dataclasses.dataclass(slots=True)
class Verdicts:
    """Remembers which plans were fetched, and what was said of each; says it again when that has changed."""

    home: Home
    plans: dict[str, Plan | None] = dataclasses.field(default_factory=dict)
    told: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def answer(self, hospital: Hospital, digests: tuple[str, ...]) -> None:
        """Say what is to be said about these plans.

        Raises:
            UserError: the coordinator cannot be reached.
            LedgerFileError: it could not be written down, so it was not said.
        """
        for digest in digests:
            plan = self._plan(digest)
            if plan is None:
                continue
            codes = codes_of(hospital, plan)
            if self.told.get(digest) == codes:
                continue
            verdict = Verdict(plan=digest, codes=codes, checkpoint="00" * CHECKPOINT_BYTES)
            made = hospital.gate.note("Verdict", plan, {"codes": list(codes)}, len(verdict.model_dump_json()))
            tell_verdict(self.home, verdict.model_copy(update={"checkpoint": made.to_bytes().hex()}))
            self.told[digest] = codes

    def _plan(self, digest: str) -> Plan | None:
        """The plan, kept for a person to look at; None where what came is not it."""
        if digest not in self.plans:
            data = proposed(self.home, digest)
            try:
                plan = Plan.from_bytes(data) if len(data) <= PLAN_BYTES else None
            except StudyError:
                plan = None
            if plan is not None and plan.digest == digest:
                Approvals(self.home.approvals).keep(plan)
            else:
                log.warning("a proposed plan cannot be read", plan=digest[:64])
                plan = None
            self.plans[digest] = plan
        return self.plans[digest]


def codes_of(hospital: Hospital, plan: Plan) -> tuple[str, ...]:
    """The refusals that a plan would meet now; none: it would be answered."""
    site = hospital.site
    assert site.guard is not None
    found = site.guard.would_refuse(plan, identity=site.party is not None, budget=site.budget is not None)
    return tuple(one.code for one in found)
