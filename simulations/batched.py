"""All sites of a round in a few batched calls: for thousands of simulated hospitals on one machine.

The same sites, episodes, checks, sums and steps as over Flower's Grid, without the messages; equal to
it to rounding. Gradients of a chunk of sites are added up before the next chunk is computed, in order
of name, so that memory does not grow with the number of sites; a robust rule needs them all, and keeps them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from clinimeta.client.meta_gradients import meta_gradients
from clinimeta.client.protected import with_noise
from clinimeta.client.site import Refuse, Site, answer, table_of
from clinimeta.common import metrics
from clinimeta.common.contributions import added_by_sites, contribution, noise_of, ring_of
from clinimeta.common.errors import BoundError, QuorumError
from clinimeta.common.metrics import Mean
from clinimeta.common.params import norm
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.noise import noise_key
from clinimeta.common.records import Introduction, IntroductionOrder, MetaGradient, MetaGradientOrder
from clinimeta.common.secagg.ring import rounding_key
from clinimeta.common.secagg.terms import THRESHOLDS
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import Table
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Aggregate, aggregate, check, outsized
from clinimeta.server.app import Job, Outcome, conduct, limits, quorum
from clinimeta.server.flow import Flow, Round, calibration_round
from clinimeta.server.link import Traffic
from clinimeta.server.protected import aggregate_of, with_central_noise
from clinimeta.simulations.consortium import noise_seed

CHUNK_TASKS = 128
"""Tasks in one call: large enough to be fast, small enough for the cache of a processor."""


@dataclass(frozen=True, slots=True)
class BatchedEngine:
    """Run a training with all its sites' tasks side by side, and no messages."""

    def __call__(self, job: Job, outcome: Outcome, sites: Mapping[str, Site]) -> None:
        """Do `job` over these hospitals."""
        together = Together(job, sites)
        outcome.introductions = together.introductions()
        conduct(job, outcome, together)


@dataclass(slots=True)
class Together:
    """Simulated hospitals that are asked all at once.

    `tables` are rows that are encoded already, in a study's only schema; a mapping that makes them when it
    is asked serves any number of hospitals. The others' records are encoded once and kept.
    """

    job: Job
    hospitals: Mapping[str, Site]
    tables: Mapping[str, Table] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    _tables: dict[str, dict[Schema, Table]] = field(default_factory=dict)

    @property
    def sites(self) -> Sequence[str]:
        """Their names, sorted."""
        return sorted(self.hospitals)

    def introductions(self) -> dict[str, Introduction]:
        """What each says of itself."""
        replies = {site: answer(self.hospitals[site], IntroductionOrder("")) for site in self.sites}
        return {site: reply for site, reply in replies.items() if isinstance(reply, Introduction)}

    def meta_gradient(self, number: int, params: Params, cohort: Sequence[str]) -> Round:
        """The cohort's meta-gradients, combined by the training's rule.

        Outsized answers are known only when all are there: if there are any, the others are computed again.
        Under a robust rule every answer is kept until then: memory for the cohort times the parameters.

        Raises:
            QuorumError: too few of them could answer.
        """
        order = MetaGradientOrder("", self.job.name, number, self.job.plan.canonical(), params)
        if self.job.plan.protection.in_whole_numbers:
            return self._in_whole_numbers(order, cohort)
        total = self._sum(order, cohort)
        found = self._mean(total, order, cohort) if self._summing else self._combined(total, params)
        needed = quorum(self.job, len(cohort))
        if len(found.accepted) < needed:
            raise QuorumError(number, len(found.accepted), needed, found.refused)
        return Round(found, silent=())

    def _in_whole_numbers(self, order: MetaGradientOrder, cohort: Sequence[str]) -> Round:
        """What a sum with or without masks comes to: masks cancel, so there are none."""
        plan, params = self.job.plan, order.params
        ring = ring_of(plan, plan.subspace().at(params), len(cohort))
        noise = noise_of(plan, ring, THRESHOLDS["two_thirds"](len(cohort)))  # all of them advertise
        words, accepted, refused = np.zeros(ring.size, np.uint32), list[str](), dict[str, str]()
        for names in self._chunks(cohort):
            for name, reply in self._replies(order, names, refused):
                seed = self.hospitals[name].rounding_seed if name in self.hospitals else bytes(32)
                key = rounding_key(seed, order.run, order.round, name)
                added = contribution(plan, reply.gradient, reply.weight, reply.metrics)
                if added_by_sites(plan):
                    added = with_noise(
                        added, noise, noise_key(noise_seed(plan), order.run, order.round, name)
                    )
                try:
                    words += ring.quantise(added, key)
                except BoundError:
                    refused[name] = "refused: not_finite"
                else:
                    accepted.append(name)
        needed = quorum(self.job, len(cohort))
        if len(accepted) < needed:
            raise QuorumError(order.round, len(accepted), needed, refused)
        words = with_central_noise(words, plan, ring, noise_seed(plan), order.run, order.round)
        found = aggregate_of(plan, ring.dequantise(words), params, accepted, refused)
        return Round(found, silent=())

    def temperatures(self, plan: Plan, params: Params) -> Mapping[int, float]:
        """As over the Grid, one site after the other: it happens once."""
        return self._drive(
            calibration_round(self.job.name, plan.canonical(), params, self.sites, nonce=lambda: "")
        )

    @property
    def _summing(self) -> bool:
        return self.job.training.aggregation.rule == "mean"

    def _mean(self, total: "_Total", order: MetaGradientOrder, cohort: Sequence[str]) -> Aggregate:
        outliers = outsized(total.sizes, limits(self.job))
        if outliers:
            total = self._sum(order, [site for site in cohort if site not in outliers])
        gradient = {n: (t / total.weight).to(order.params[n].dtype) for n, t in total.gradient.items()}
        refused = total.refused | outliers
        return Aggregate(gradient, total.weight, total.metrics, tuple(sorted(total.sizes)), refused)

    def _combined(self, total: "_Total", params: Params) -> Aggregate:
        like = self.job.plan.subspace().at(params)
        found = aggregate(total.kept, limits(self.job), like, self.job.training.aggregation)
        return replace(found, refused=total.refused | dict(found.refused))

    def _sum(self, order: MetaGradientOrder, cohort: Sequence[str]) -> "_Total":
        total = _Total()
        for names in self._chunks(cohort):
            total = self._add(total, order, names)
        return total

    def _chunks(self, cohort: Sequence[str]) -> Iterator[Sequence[str]]:
        """The cohort in order of name, as many at a time as are computed together."""
        names, size = sorted(cohort), max(1, CHUNK_TASKS // self.job.plan.episodes.tasks)
        for start in range(0, len(names), size):
            yield names[start : start + size]

    def _replies(
        self, order: MetaGradientOrder, names: Sequence[str], refused: dict[str, str]
    ) -> Iterator[tuple[str, MetaGradient]]:
        """These sites' answers in order of name; why others have none goes into `refused`."""
        tables = dict[str, Table]()
        for name in names:
            try:
                tables[name] = self._table(name)
            except Refuse as refusal:
                refused[name] = f"refused: {refusal.code}"
        device = next((site.device for site in self.hospitals.values()), "cpu")  # the same for all
        for name, reply in sorted(meta_gradients(self.job.plan, order, tables, device).items()):
            if isinstance(reply, MetaGradient):
                yield name, reply
            else:
                refused[name] = f"refused: {reply.code}"

    def _add(self, total: "_Total", order: MetaGradientOrder, names: Sequence[str]) -> "_Total":
        refused = dict(total.refused)
        sizes, weight, measured, kept = dict(total.sizes), total.weight, total.metrics, dict(total.kept)
        gradient: Mapping[str, Tensor] = total.gradient
        like = self.job.plan.subspace().at(order.params)
        for name, reply in self._replies(order, names, refused):
            reason = check(reply, name, order, limits(self.job), like)
            if reason is not None:
                refused[name] = reason
                continue
            if not self._summing:
                kept[name] = reply
                continue
            sizes[name] = norm(reply.gradient) / reply.weight
            weight += reply.weight
            measured = metrics.merge(measured, reply.metrics)
            gradient = {
                n: gradient[n] + g if n in gradient else g.double()  # float64 + float32 is float64
                for n, g in reply.gradient.items()
            }
        return _Total(gradient, weight, sizes, measured, refused, kept)

    def _table(self, name: str) -> Table:
        if name in self.tables:
            return self.tables[name]
        return table_of(self.hospitals[name], self.job.plan.table, self._tables.setdefault(name, {}))

    def _drive(self, flow: Flow[Mapping[int, float]]) -> Mapping[int, float]:
        """Let every site answer a flow's orders."""
        try:
            orders = next(flow)
            while True:
                tables = self._tables
                orders = flow.send(
                    {
                        site: answer(self.hospitals[site], order, tables.setdefault(site, {}))
                        for site, order in orders.items()
                    }
                )
        except StopIteration as finished:
            result: Mapping[int, float] = finished.value
            return result


@dataclass(frozen=True, slots=True)
class _Total:
    """A running sum over sites, in float64; under a robust rule the answers themselves, in `kept`."""

    gradient: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0
    sizes: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Mean] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    kept: Mapping[str, MetaGradient] = field(default_factory=dict)
