"""`clinimeta site dry-run`: adapt once on the hospital's table and show what would be sent; send nothing."""

import time
from dataclasses import dataclass, replace

from clinimeta.client.gate import entry_of
from clinimeta.client.hospital import Hospital
from clinimeta.client.ledger import Entry
from clinimeta.client.meta_gradients import meta_gradients
from clinimeta.client.policy import Verdict
from clinimeta.common.errors import UserError
from clinimeta.common.plan import Plan
from clinimeta.common.records import MetaGradientOrder, Refusal
from clinimeta.common.rng import generator

_ADDRESSED = ("nonce", "run", "round")
"""What says only which order is answered; here there was none."""


def _in_words(value: object) -> str:
    """A number of an answer, or a metric: its sum over tasks, and over how many."""
    match value:
        case {"total": total, "weight": weight}:
            return f"{total:.6g} in all, over {weight:g}"
        case dict():
            return "; ".join(f"{name} {_in_words(inner)}" for name, inner in value.items())
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)


@dataclass(frozen=True, slots=True)
class DryRun:
    """What would be sent (`entry`), how long it took to make, and what the policy says against it."""

    plan: Plan
    entry: Entry
    seconds: float
    refused: tuple[Verdict, ...]

    def lines(self) -> list[str]:
        """For a terminal."""
        entry, protection = self.entry, self.plan.protection
        lines = [f"one answer to '{self.plan.study}' took {self.seconds:.2f} s; nothing was sent"]
        if entry.outcome != "sent":
            lines.append(f"it would be a refusal, {entry.outcome}: {entry.numbers.get('reason', '')}")
        for tensor in entry.tensors:
            shape = " x ".join(map(str, tensor.shape)) or "one number"
            lines.append(f"  {tensor.name}: {shape}, {tensor.kind}, length (L2) {tensor.norm or 0:.4g}")
        for name, value in entry.numbers.items():
            if name not in _ADDRESSED:
                lines.append(f"  {name.replace('_', ' ')}: {_in_words(value)}")
        if protection.in_whole_numbers:
            how = (
                "masked, so that only the sum over hospitals can be read"
                if (protection.answers == "masked")
                else "readable by the coordinator"
            )
            lines.append(
                f"before it leaves it would be cut to length {protection.clip:g} a task, rounded to whole "
                f"numbers, {how}"
            )
        if protection.epsilon:
            lines.append(
                f"and noise of {protection.noise_multiplier:.3g} times a patient's reach would be in the sum"
            )
        lines += [
            f"your policy would refuse it: {verdict.reason} ({verdict.code})" for verdict in self.refused
        ]
        if not self.refused:
            lines.append("your policy would let it go")
        return lines


def dry_run(hospital: Hospital, plan: Plan) -> DryRun:
    """Make an answer from the first parameters of a training, as the study draws them.

    Raises:
        DataError: the table does not fit the study.
        UserError: the study cannot be trained.
    """
    if not plan.episodes.tasks:
        raise UserError("this study trains nothing", found=plan.study)
    started = time.monotonic()
    site = hospital.site
    params = plan.learner().init(generator("init", plan.seed))
    order = MetaGradientOrder("dry-run", "dry-run", 1, plan.canonical(), params)
    reply = meta_gradients(plan, order, {site.name: site.table(plan.table)}, site.device)[site.name]
    seconds = time.monotonic() - started
    if not isinstance(reply, Refusal):
        reply = replace(reply, nonce="")
    entry = entry_of(
        reply, order, plan, at="", to=hospital.gate.to, policy=hospital.policy, cost=None, size=0
    )
    assert site.guard is not None
    refused = site.guard.would_refuse(plan, identity=site.party is not None, budget=site.budget is not None)
    return DryRun(plan, entry, seconds, refused)
