"""A site's meta-gradient: draw tasks, differentiate, add up; for one site, or for many simulated together.

A hospital calls this with its own table. A simulation may call it with many: the tasks of all sites go
through the engine side by side, and each site still gets the sum over its own tasks only.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from clinimeta.common import metrics
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.engine import engine
from clinimeta.common.metrics import Mean
from clinimeta.common.params import add, is_finite, map_params, scaled
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.clipping import clip_tasks
from clinimeta.common.records import MetaGradient, MetaGradientOrder, Refusal
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.sampler import draw_episodes
from clinimeta.common.tasks.table import Table
from clinimeta.common.typing import Params


def meta_gradients(
    plan: Plan, order: MetaGradientOrder, tables: Mapping[str, Table], device: str = "cpu"
) -> dict[str, MetaGradient | Refusal]:
    """One answer a site (run by the site): one or several outer steps on its own tasks.

    After one step a site sends the sum of its tasks' meta-gradients; after several, the difference between
    what it received and what it reached, scaled so that it means the same. Either holds only what learns
    (`plan.subspace`).
    """
    learner, subspace = plan.learner(), plan.subspace()
    tasks = {site: draw(plan, order, site, table, 0) for site, table in tables.items()}
    replies: dict[str, MetaGradient | Refusal] = {
        site: _refusal(order, site, "too_few_rows", "the table is too small for a task of this study")
        for site, drawn in tasks.items()
        if not drawn
    }
    tasks = {site: drawn for site, drawn in tasks.items() if drawn}
    if not tasks:
        return replies
    sites = list(tasks)
    counts = torch.tensor([len(drawn) for drawn in tasks.values()])
    owner = torch.repeat_interleave(torch.arange(len(sites)), counts)
    batch = stack([episode for drawn in tasks.values() for episode in drawn])
    computed = engine(learner, device).task_gradients(order.params, batch)
    outputs_of = torch.split(computed.outputs.cpu(), counts.tolist())
    measured = [
        _measure(learner, outputs, query)
        for outputs, query in zip(outputs_of, _split(batch.query, counts.tolist()), strict=True)
    ]
    gradients, protection = subspace.project(computed.gradients), plan.protection
    if protection.in_whole_numbers and plan.local_meta_steps == 1:
        gradients = clip_tasks(gradients, protection.clip)
    totals = _by_site(gradients, owner, len(sites))
    if plan.local_meta_steps > 1:
        totals = _several_steps(plan, order, tables, sites, counts, totals, device)
        if protection.in_whole_numbers:
            totals = _clipped_sites(totals, counts, protection.clip)
    for i, site in enumerate(sites):
        gradient, weight = map_params(lambda g, i=i: g[i], totals), float(counts[i])
        if plan.weighting == "rows":
            rows = float(len(tables[site]))
            if protection.in_whole_numbers:
                rows = min(rows, float(protection.max_rows))
            gradient, weight = scaled(gradient, rows / weight), rows
        if is_finite(gradient):
            replies[site] = MetaGradient(
                order.nonce, order.run, order.round, site, weight, gradient, measured[i]
            )
        else:
            text = "the meta-gradient is not finite; smaller step sizes may help"
            replies[site] = _refusal(order, site, "not_finite", text)
    return replies


def _several_steps(
    plan: Plan,
    order: MetaGradientOrder,
    tables: Mapping[str, Table],
    sites: list[str],
    counts: Int[Tensor, " sites"],
    first: Params,
    device: str,
) -> Params:
    """The other local steps; every site now has parameters of its own, `[sites, ...]`."""
    subspace = plan.subspace()

    def per_site(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

    def descend(params: Params, sums: Params, tasks: Tensor) -> Params:
        if plan.proximal:  # FedProx (Li et al., MLSys 2020): stay near what was received
            away = map_params(lambda p, start: p - start, params, order.params)
            params = add(params, away, -plan.local_rate * plan.proximal)
        values = subspace.at(params)
        values = map_params(lambda p, g: p - plan.local_rate * g / per_site(tasks, g), values, sums)
        return subspace.put(params, values)

    received = map_params(lambda p: p.expand(len(sites), *p.shape), order.params)
    params, tasks = descend(received, first, counts), counts
    for step in range(1, plan.local_meta_steps):
        drawn = [draw(plan, order, site, tables[site], step) for site in sites]
        tasks = torch.tensor([len(episodes) for episodes in drawn])
        owner = torch.repeat_interleave(torch.arange(len(sites)), tasks)
        own = map_params(lambda p, owner=owner: p[owner], params)
        batch = stack([episode for episodes in drawn for episode in episodes])
        computed = engine(plan.learner(), device).task_gradients(own, batch, own_params=True)
        params = descend(params, _by_site(subspace.project(computed.gradients), owner, len(sites)), tasks)
    # (received - reached) / rate is the sum of the steps' mean gradients; times tasks as for one step.
    moved = map_params(lambda a, b: (a - b) * per_site(tasks, a) / plan.local_rate, received, params)
    return subspace.project(moved)


def _clipped_sites(totals: Params, counts: Int[Tensor, " sites"], bound: float) -> Params:
    """Sites' totals `[sites, ...]`, each cut to norm `bound` a task; float64. Local steps mix the tasks."""

    def a_task(g: Tensor) -> Tensor:
        return counts.to(torch.float64).reshape(-1, *[1] * (g.dim() - 1))

    means = clip_tasks(map_params(lambda g: g / a_task(g), totals), bound)
    return map_params(lambda g: g * a_task(g), means)


def draw(plan: Plan, order: MetaGradientOrder, site: str, table: Table, step: int) -> list[Episode]:
    """The tasks of a site's local step, the same whenever it is asked; none where the table is too small."""
    return draw_episodes(table, plan.episodes, generator("episodes", plan.seed, order.round, step, site))


def _by_site(gradients: Params, owner: Int[Tensor, " tasks"], sites: int) -> Params:
    """The sum of each site's tasks' meta-gradients, `[sites, ...]`, off the device that computed them."""

    def total(g: Tensor) -> Tensor:
        return g.new_zeros((sites, *g.shape[1:])).index_add_(0, owner.to(g.device), g).cpu()

    return map_params(total, gradients)


def _split(rows: Examples, counts: list[int]) -> list[Examples]:
    """Targets and weights of each site's tasks."""
    both = zip(torch.split(rows.targets, counts), torch.split(rows.weights, counts), strict=True)
    return [Examples({}, targets, weights) for targets, weights in both]


def _measure(learner: MetaLearner[object], outputs: Tensor, query: Examples) -> Mapping[str, Mean]:
    """Aggregates over all query rows of all tasks; names outside the allow-list do not leave."""
    flat = Examples({}, query.targets.flatten(), query.weights.flatten())
    measured = learner.objective.metrics(outputs.flatten(0, 1), flat)
    return {name: mean for name, mean in measured.items() if name in metrics.ALLOWED}


def _refusal(order: MetaGradientOrder, site: str, code: str, reason: str) -> Refusal:
    return Refusal(order.nonce, site, code, reason)
