"""What the coordinator accepts, and how it adds it up.

A reply that is not finite, has other shapes, stands for no task or has an outsized norm is refused;
the round goes on without it and the run's report names it.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from clinimeta.common import metrics
from clinimeta.common.metrics import Mean
from clinimeta.common.params import is_finite, norm, shapes
from clinimeta.common.records import MetaGradient, MetaGradientOrder
from clinimeta.common.safeguards import AggregationSettings
from clinimeta.common.typing import Params
from clinimeta.server.robust import combine


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a meta-gradient (a task) may be, absolutely and against the cohort's median, and a weight."""

    max_norm: float
    max_norm_ratio: float
    max_weight: float = 1e9


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The accepted meta-gradients combined, what they stand for, and who was refused why.

    `by_site` holds each hospital's own metrics, where answers come in clear.
    """

    gradient: Params | None
    weight: float
    metrics: Mapping[str, Mean]
    accepted: tuple[str, ...]
    refused: Mapping[str, str]
    by_site: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def check(
    reply: MetaGradient, site: str, order: MetaGradientOrder, limits: Limits, like: Params | None = None
) -> str | None:
    """Why this reply is unusable on its own, or None.

    `site` is whom the order went to: a reply in another's name, or to another order, is refused. `like` has
    the names, shapes and number types that a meta-gradient must have (None: the order's parameters').
    """
    like = order.params if like is None else like
    if (reply.nonce, reply.run, reply.round) != (order.nonce, order.run, order.round):
        return "answers another order"
    if reply.site != site:
        return "answers in another site's name"
    if shapes(reply.gradient) != shapes(like):
        return "wrong names or shapes"
    if any(g.dtype != p.dtype for g, p in zip(_sorted(reply.gradient), _sorted(like), strict=True)):
        return "wrong number type"
    if not (math.isfinite(reply.weight) and reply.weight > 0):
        return "a weight that is not positive"
    if reply.weight > limits.max_weight:
        return f"a weight over the limit of {limits.max_weight:g}"
    if not is_finite(reply.gradient):
        return "not finite"
    if not _metrics_are_sound(reply.metrics):
        return "metrics that are not finite or not on the list"
    size = norm(reply.gradient) / reply.weight
    if size > limits.max_norm:
        return f"norm {size:.3g} is over the limit of {limits.max_norm:.3g}"
    return None


def blames_parameters(reason: str) -> bool:
    """Whether a reply was unusable for its numbers, as happens where the parameters sent were bad.

    >>> blames_parameters("refused: not_finite"), blames_parameters("silent")
    (True, False)
    """
    numbers = ("not finite", "metrics that are not finite", "norm ", "refused: not_finite")
    return reason.startswith(numbers) and "median" not in reason


def aggregate(
    replies: Mapping[str, MetaGradient],
    limits: Limits,
    like: Params,
    rule: AggregationSettings | None = None,
) -> Aggregate:
    """All replies in one, over sites in order of name (so that the result does not depend on who was first).

    By default their weighted mean; `rule` may ask for a robust one (`robust.py`): each site counts once.
    From three replies on, one whose norm is more than `max_norm_ratio` times the median is refused. Sums
    are taken in float64, the result has the dtypes of `like`. Where fewer replies are accepted than the rule
    needs there is no gradient.
    """
    rule = rule or AggregationSettings()
    sizes = {site: norm(reply.gradient) / reply.weight for site, reply in replies.items()}
    refused = outsized(sizes, limits)
    accepted = tuple(sorted(set(replies) - set(refused)))
    weight = sum(replies[site].weight for site in accepted)
    measured: Mapping[str, Mean] = {}
    for site in accepted:
        measured = metrics.merge(measured, replies[site].metrics)
    gradient: Params | None = None
    if len(accepted) >= rule.least_sites and rule.rule == "mean":
        gradient = {
            name: (sum_of([replies[site].gradient[name] for site in accepted]) / weight).to(tensor.dtype)
            for name, tensor in like.items()
        }
    elif len(accepted) >= rule.least_sites:
        gradient = combine(_stacked([replies[site] for site in accepted], like), rule)
    by_site = {s: {name: mean.value for name, mean in replies[s].metrics.items()} for s in accepted}
    return Aggregate(gradient, weight, measured, accepted, refused, by_site)


def outsized(sizes: Mapping[str, float], limits: Limits) -> dict[str, str]:
    """Which of three or more sites' norms (a task) are too far over the median, and why."""
    if len(sizes) < 3:
        return {}
    bound = limits.max_norm_ratio * statistics.median(sizes.values())
    return {
        site: f"norm {size:.3g} is more than {limits.max_norm_ratio:.3g} times the cohort's median"
        for site, size in sorted(sizes.items())
        if size > bound
    }


def sum_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The sum in float64, term by term in the given order."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total = total + tensor.double()
    return total


def _stacked(replies: list[MetaGradient], like: Params) -> Params:
    """Each reply's mean over what it stands for, `[sites, ...]` on every tensor."""
    return {
        name: torch.stack([(r.gradient[name].double() / r.weight).to(tensor.dtype) for r in replies])
        for name, tensor in like.items()
    }


def _sorted(params: Params) -> list[torch.Tensor]:
    return [params[name] for name in sorted(params)]


def _metrics_are_sound(measured: Mapping[str, Mean]) -> bool:
    return all(
        name in metrics.ALLOWED
        and math.isfinite(mean.total)
        and math.isfinite(mean.weight)
        and mean.weight >= 0
        for name, mean in measured.items()
    )
