"""A site's answers to the coordinator's orders: pure functions of its own table (run by the site).

Whatever an order asks, only what `records` defines can leave. All that can be said against an order without
the site's records is said first: by the site's own policy (`Site.guard`), by the plan, by the privacy
budget. Only then is the table read. A site that cannot or will not answer says so with a `Refusal`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import structlog

from clinimeta.client.budget import Allowance, Answer, Budget
from clinimeta.client.guard import Guard
from clinimeta.client.meta_gradients import meta_gradients
from clinimeta.client.plan_words import shown
from clinimeta.client.protected import Unable, contributed, masking, quantised, with_noise
from clinimeta.client.sources.mapping import Translation, translate
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.engine import engine
from clinimeta.common.calibration import TEMPERATURES
from clinimeta.common.contributions import model_digest, noise_of, ring_of
from clinimeta.common.errors import BudgetError, DataError, RecordError, StudyError
from clinimeta.common.params import is_finite, like
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.noise import noise_key
from clinimeta.common.records import (
    REFUSALS,
    Calibration,
    CalibrationOrder,
    Introduction,
    IntroductionOrder,
    Masking,
    MaskingOrder,
    MetaGradientOrder,
    Order,
    QuantisedOrder,
    Refusal,
    Reply,
    count_range,
)
from clinimeta.common.rng import generator
from clinimeta.common.secagg.ring import Contribution, Ring
from clinimeta.common.secagg.site import Opened
from clinimeta.common.secagg.site import Site as Party
from clinimeta.common.secagg.terms import MAX_SITES
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.sampler import draw_episode
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import Records, Table, encode
from clinimeta.common.typing import Params

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital in the federation: its name and its own records, which stay here.

    `test` marks records that the data set's protocol keeps for evaluation; no answer is made from them.
    `device` is where torch computes: "cpu" or "cuda". `party` is its part in secure aggregation: its key, the
    consortium's roster, its policy and its journal. `rounding_seed` makes the quantiser's rounding
    a function of run and round; the privacy of an answer does not rest on it. It does rest on fresh noise:
    `noise_seed` is for simulations only, which must repeat themselves. `budget` is asked before any answer
    with noise is made. `guard` holds every order against the site's policy and what its people have
    approved; a simulation has none, and answers whatever is asked in its own process. `words` is how the
    hospital's own names, codes and units become a study's.
    """

    name: str
    records: Records
    test: tuple[bool, ...] | None = None
    device: str = "cpu"
    party: Party | None = field(default=None, repr=False)
    rounding_seed: bytes = field(default=bytes(32), repr=False)
    noise_seed: bytes | None = field(default=None, repr=False)
    budget: Budget | None = None
    guard: Guard | None = None
    words: Translation | None = None

    def table(self, schema: Schema) -> Table:
        """The rows that training may see, encoded as a study's schema says.

        Raises:
            DataError: the records do not fit the schema.
        """
        records = self.records if self.words is None else translate(self.records, self.words, schema)
        return encode(schema, records, test=self.test).training


class Refuse(Exception):  # noqa: N818 (it is an answer on its way out, not an error)
    """Becomes a `Refusal`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def answer(site: Site, order: Order, tables: dict[Schema, Table] | None = None) -> Reply:
    """The site's answer. `tables` keeps encoded tables between calls; it may be thrown away at any time."""
    known = {} if tables is None else tables
    try:
        plan = _admitted(site, order)
        if isinstance(order, IntroductionOrder):
            low, high = count_range(len(site.records)) if site.guard is None else site.guard.rows_told()
            return Introduction(order.nonce, site.name, f"clinimeta {version('clinimeta')}", low, high)
        if isinstance(order, MaskingOrder):
            return _masking(site, order, plan, known)
        assert plan is not None
        learner = _fitting(plan, order.params)
        if isinstance(order, CalibrationOrder):
            _require_calibration(plan, order)
            return _calibration(site, order, plan, learner, table_of(site, plan.table, known))
        if PROTECTION.get(plan.protection.answers) is not type(order):
            raise Refuse("not_protected", f"the plan promises that answers are {plan.protection.answers}")
        if isinstance(order, QuantisedOrder):
            if not 0 < order.sites <= MAX_SITES:
                raise Refuse("bad_order", f"a sum over fewer than one or more than {MAX_SITES} sites")
            ring = ring_of(plan, plan.subspace().at(order.params), order.sites)
            _require_budget(site, plan, order, ring)
            table = table_of(site, plan.table, known)
            key = _reserved(site, plan, order, ring)
            return quantised(plan, order, site.name, table, site.rounding_seed, key, site.device)
        table = table_of(site, plan.table, known)
        return meta_gradients(plan, order, {site.name: table}, site.device)[site.name]
    except Unable as unable:
        return _logged(site, order, unable.refusal)
    except Refuse as refuse:
        return _logged(site, order, Refusal(order.nonce, site.name, refuse.code, refuse.reason))


PROTECTION: Mapping[str, type[Order]] = {"plain": MetaGradientOrder, "quantised": QuantisedOrder}
"""`Protection.answers` -> the one order for a meta-gradient that is answered under such a plan."""


def _logged(site: Site, order: Order, refusal: Refusal) -> Refusal:
    """The refusal, once it is in the site's own log: which order, and the code; of a simulation nothing."""
    if site.guard is not None:
        run, number = shown(getattr(order, "run", "")), getattr(order, "round", None)
        log.warning("order refused", code=refusal.code, run=run, round=number)
    return refusal


def _admitted(site: Site, order: Order) -> Plan | None:
    """The order's plan, if it has one, once the site's policy lets the order pass.

    Raises:
        Refuse: it does not, or the plan cannot be read.
    """
    guard, has = site.guard, {"identity": site.party is not None, "budget": site.budget is not None}
    verdict = None if guard is None else guard.first_look(order, **has)
    if verdict is not None:
        raise Refuse(verdict.code, verdict.reason)
    if isinstance(order, IntroductionOrder) or (isinstance(order, MaskingOrder) and not order.plan):
        return None
    plan = _read_plan(order.plan)
    verdict = None if guard is None else guard.refusal(order, plan, **has)
    if verdict is not None:
        raise Refuse(verdict.code, verdict.reason)
    return plan


def _read_plan(data: bytes) -> Plan:
    try:
        plan = Plan.from_bytes(data)
    except StudyError as error:
        raise Refuse("bad_plan", error.what) from None
    if plan.protection.epsilon and not plan.protection.noise_multiplier:
        raise Refuse("bad_plan", "the plan promises privacy, and no noise")
    return plan


def _fitting(plan: Plan, params: Params) -> MetaLearner[Any]:
    """The plan's learner, which the parameters fit."""
    try:
        learner = plan.learner()
    except StudyError as error:
        raise Refuse("bad_plan", error.what) from None
    if not like(params, learner.init(generator("template"))) or not is_finite(params):
        raise Refuse("bad_order", "the parameters do not fit the plan's learner, or are not finite")
    return learner


def _require_calibration(plan: Plan, order: CalibrationOrder) -> None:
    if plan.protection.in_whole_numbers:  # its losses would be seen, and without noise
        raise Refuse("not_protected", f"the plan promises that answers are {plan.protection.answers}")
    if not all(math.isfinite(t) and t > 0 for t in order.temperatures):
        raise Refuse("bad_order", "a temperature is not a positive number")
    if len(order.temperatures) > len(TEMPERATURES):  # thousands would trace single patients' outputs
        raise Refuse("bad_order", f"more than {len(TEMPERATURES)} temperatures")


def _masking(site: Site, order: MaskingOrder, plan: Plan | None, tables: dict[Schema, Table]) -> Masking:
    party = site.party
    if party is None:
        raise Refuse("no_identity", REFUSALS["no_identity"])
    if site.guard is not None:
        party = replace(party, policy=site.guard.party_policy(budget=site.budget is not None))

    def contribute(opened: Opened) -> Contribution:
        assert plan is not None  # `masking` has compared its digest with the terms'
        if plan.protection.answers != "masked":
            raise Refuse("not_protected", f"the plan promises that answers are {plan.protection.answers}")
        _fitting(plan, order.params)
        ring = ring_of(plan, plan.subspace().at(order.params), opened.terms.n_max)
        if ring != Ring.of(opened.terms):  # a smaller bound would make the noise smaller
            raise Refuse("not_protected", "the terms' bounds are not those that follow from the plan")
        if opened.terms.min_cohort < plan.protection.min_cohort:  # each share of noise is made for so many
            raise Refuse("not_protected", "the terms let fewer hospitals' sum be opened than the plan")
        _require_budget(site, plan, order, ring, opened)
        table = table_of(site, plan.table, tables)
        key = _reserved(site, plan, order, ring, opened)
        added = contributed(plan, order, site.name, table, site.device)
        return with_noise(added, noise_of(plan, ring, opened.survivors), key)

    try:
        return masking(party, order, contribute)
    except RecordError as error:
        raise Refuse("bad_order", str(error)) from None


def _require_budget(
    site: Site, plan: Plan, order: QuantisedOrder | MaskingOrder, ring: Ring, opened: Opened | None = None
) -> None:
    """Ask the budget whether the answer may be made, before a record is looked at.

    Raises:
        Refuse: it would cost the patients more than they were promised.
    """
    about = _about(plan, order, ring, opened)
    if about is not None and site.budget is not None:
        try:
            site.budget.require(about, _allowance(plan))
        except BudgetError:
            raise Refuse("budget_spent", REFUSALS["budget_spent"]) from None


def _reserved(
    site: Site, plan: Plan, order: QuantisedOrder | MaskingOrder, ring: Ring, opened: Opened | None = None
) -> bytes:
    """The key of the answer's noise, once the budget has it on record that the answer will be made.

    Raises:
        Refuse: as `_require_budget`.
    """
    about = _about(plan, order, ring, opened)
    if about is None or site.budget is None:
        return noise_key(site.noise_seed, order.run, order.round, site.name)
    try:
        return site.budget.reserve(about, _allowance(plan)).key
    except BudgetError:
        raise Refuse("budget_spent", REFUSALS["budget_spent"]) from None


def _about(
    plan: Plan, order: QuantisedOrder | MaskingOrder, ring: Ring, opened: Opened | None
) -> Answer | None:
    """What the budget is asked about; None where the plan promises nothing."""
    noise = noise_of(plan, ring, opened.survivors if opened else 0)
    if noise is None:
        return None
    return Answer(
        study=plan.digest,
        run=order.run,
        round=order.round,
        attempt=opened.terms.attempt if opened else 0,
        content=model_digest(order.plan, order.params).hex(),
        multiplier=noise.multiplier,
        sensitivity=noise.sensitivity,
    )


def _allowance(plan: Plan) -> Allowance:
    return Allowance(plan.protection.epsilon, plan.protection.delta)


def table_of(site: Site, schema: Schema, tables: dict[Schema, Table]) -> Table:
    """The site's training rows as the schema says, from `tables` where they are known.

    Raises:
        Refuse: the records do not fit.
    """
    if schema not in tables:
        try:
            tables[schema] = site.table(schema)
        except DataError as error:  # `what` names a column; `where` would name the hospital's file
            raise Refuse("table_mismatch", error.what) from None
    return tables[schema]


def _calibration(
    site: Site, order: CalibrationOrder, plan: Plan, learner: MetaLearner[Any], table: Table
) -> Calibration:
    """Summed log loss at each temperature, for each size of support set that the table can give."""
    shots, losses = [], list[float]()
    for size in plan.episodes.shots:
        rng = generator("calibration", plan.seed, size, site.name)
        drawn = [draw_episode(table, plan.episodes, size, rng) for _ in range(plan.episodes.tasks)]
        episodes: list[Episode] = [episode for episode in drawn if episode is not None]
        if not episodes:
            continue
        batch = stack(episodes)
        outputs = engine(learner, site.device).adapt_and_predict(order.params, batch).flatten(0, 1)
        query = Examples({}, batch.query.targets.flatten(), batch.query.weights.flatten())
        rows = float(query.weights.sum())
        shots.append(size)
        losses += [rows * float(learner.objective.loss(outputs / t, query)) for t in order.temperatures]
    if not shots:
        raise Refuse("too_few_rows", "the table is too small for a task of this study")
    if not all(math.isfinite(loss) for loss in losses):
        raise Refuse("not_finite", "the adapted outputs are not finite; smaller step sizes may help")
    return Calibration(order.nonce, order.run, site.name, tuple(shots), tuple(losses))
