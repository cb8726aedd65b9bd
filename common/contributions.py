"""A site's answer as one vector with named columns, as the quantiser takes it, and back.

The vector is the meta-gradient, tensor by tensor in order of name. Columns are the weight that it stands for
and, for each metric, its sum and its weight. Bounds follow from the plan alone, so both sides know them.
"""

import functools
import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch

from clinimeta.common import metrics
from clinimeta.common.applications import APPLICATIONS
from clinimeta.common.metrics import Mean
from clinimeta.common.params import digest
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.clipping import with_rounding
from clinimeta.common.privacy.noise import Noise
from clinimeta.common.secagg.ring import Contribution, Ring
from clinimeta.common.secagg.terms import Column
from clinimeta.common.tasks.episode import Examples
from clinimeta.common.typing import Params

WEIGHT = "weight"
TAIL = 8.0
"""Standard deviations of noise that fit into the ring beside the sum: beyond it is one number in 10^15."""
LARGEST_METRIC = 1000.0
"""A row's loss or error counts for at most this in the sums that leave a site in whole numbers."""


def ring_of(plan: Plan, params: Params, sites: int) -> Ring:
    """The quantiser of a round with up to so many sites, for answers that fit `params`."""
    dim = sum(p.numel() for p in params.values())
    protection = plan.protection
    spread = protection.noise_multiplier * sensitivity(plan) / math.sqrt(_honest(plan))
    bound = largest_weight(plan) * protection.clip + TAIL * spread
    return Ring(dim, bound, columns_of(plan), sites)


def sensitivity(plan: Plan) -> float:
    """How far (L2) one patient can move a site's sum, before rounding (`privacy.promise`).

    Where one patient's absence may change every task of a site (`plan.unpromised`), its whole answer counts,
    which is cut and can move from end to end.
    """
    episodes = plan.episodes
    tasks = episodes.tasks if plan.unpromised() else min(episodes.tasks_a_patient, episodes.tasks)
    return 2 * tasks * plan.protection.clip


def noise_of(plan: Plan, ring: Ring, survivors: int = 0) -> Noise | None:
    """The noise of a round's sum, in the ring's whole numbers; None where the plan promises nothing.

    `survivors` is the fewest sites whose masked sum may be opened, at least the plan's `min_cohort`.
    """
    protection = plan.protection
    if not protection.noise_multiplier:
        return None
    scale = ring.scale(ring.bound)
    moved = with_rounding(sensitivity(plan), ring.dim, scale)
    if protection.noise == "local":
        return Noise(protection.noise_multiplier, moved, scale, "local")
    if protection.answers == "quantised":
        return Noise(protection.noise_multiplier, moved, scale, "central")
    return Noise(
        protection.noise_multiplier,
        moved,
        scale,
        "distributed",
        max(survivors, protection.min_cohort),
        protection.colluders,
    )


def _honest(plan: Plan) -> int:
    protection = plan.protection
    shared = protection.answers == "masked" and protection.noise == "shared"
    return protection.min_cohort - protection.colluders if shared else 1


def added_by_sites(plan: Plan) -> bool:
    """Whether sites add noise themselves, all of it or a share; else the coordinator does."""
    return plan.protection.answers == "masked" or plan.protection.noise == "local"


def largest_weight(plan: Plan) -> float:
    """The most that one site's answer can stand for: tasks, or rows."""
    return float(plan.protection.max_rows if plan.weighting == "rows" else plan.episodes.tasks)


def columns_of(plan: Plan) -> tuple[Column, ...]:
    """The numbers that travel beside the vector, and their bounds."""
    ways = plan.episodes.ways if plan.episodes.draw == "per_class" else 1
    rows = float(plan.episodes.tasks * plan.episodes.query * ways)
    columns = [Column(WEIGHT, largest_weight(plan))]
    for name in metrics_of(plan):
        columns += [Column(f"{name}.total", LARGEST_METRIC * rows), Column(f"{name}.weight", rows)]
    return tuple(columns)


def contribution(plan: Plan, gradient: Params, weight: float, measured: Mapping[str, Mean]) -> Contribution:
    """What a site adds. Metrics over their bound are cut to it; the gradient was cut already.

    Under a promise every site counts for the tasks that were agreed, since how many it had is private.
    """
    values = {WEIGHT: largest_weight(plan) if plan.protection.noise_multiplier else weight}
    for name, mean in measured.items():
        values |= {f"{name}.total": mean.total, f"{name}.weight": mean.weight}
    columns = columns_of(plan)
    cut = {c.name: float(np.clip(np.nan_to_num(values.get(c.name, 0.0)), -c.bound, c.bound)) for c in columns}
    return Contribution(flatten(gradient), cut)


def combined(plan: Plan, total: Contribution, template: Params) -> tuple[Params, float, dict[str, Mean]]:
    """The sum over sites as it was before: meta-gradient (float64), weight, metrics."""
    found = {
        name: Mean(total.columns[f"{name}.total"], total.columns[f"{name}.weight"])
        for name in metrics_of(plan)
    }
    return unflatten(total.vector, template), total.columns[WEIGHT], found


def flatten(params: Params) -> np.ndarray:
    """All numbers `[dim]`, tensor by tensor in order of name."""
    return torch.cat([params[name].detach().flatten() for name in sorted(params)]).numpy()


def unflatten(vector: np.ndarray, template: Params) -> Params:
    """The inverse of `flatten`, with the names and shapes of `template`."""
    names = sorted(template)
    parts = torch.split(torch.from_numpy(vector), [template[name].numel() for name in names])
    return {name: part.reshape(template[name].shape) for name, part in zip(names, parts, strict=True)}


def metrics_of(plan: Plan) -> tuple[str, ...]:
    """The metrics that travel with the plan's answers, in order of name; none under a promise.

    Raises:
        StudyError: an unknown application.
    """
    if plan.protection.noise_multiplier:
        return ()
    return _metric_names(plan.application)


@functools.lru_cache(maxsize=64)
def _metric_names(application: str) -> tuple[str, ...]:
    """What the objective measures, of any number of classes: found by measuring two rows of nothing."""
    objective = APPLICATIONS.build(application, {}, classes=2)
    nothing = Examples({}, torch.zeros(2, dtype=torch.long), torch.ones(2))
    measured = objective.metrics(torch.zeros(2, objective.outputs), nothing)
    return tuple(sorted(set(measured) & metrics.ALLOWED))


def model_digest(plan: bytes, params: Params) -> bytes:
    """SHA-256 of the plan and the meta-parameters: what must be equal at all sites for masks to cancel."""
    return hashlib.sha256(hashlib.sha256(plan).digest() + bytes.fromhex(digest(params))).digest()
