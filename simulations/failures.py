"""Things that go wrong on the way to or from a site, on purpose and reproducibly."""

from dataclasses import dataclass, replace
from enum import Enum

import torch

from clinimeta.common.records import MetaGradient
from clinimeta.common.rng import derive_seed, generator
from clinimeta.common.study import Faults


class Fault(Enum):
    """What happens to one order."""

    SILENT = "silent"
    SLOW = "slow"
    ERROR = "error"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which site fails at which order: a function of seed, site and the number of orders it had so far."""

    faults: Faults
    seed: int = 0

    def fault(self, site: str, order: int) -> Fault | None:
        """The fault of a site's `order`-th order, or None."""
        draw = float(torch.rand((), generator=generator("fault", self.seed, site, order)))
        for fault in Fault:
            share = float(getattr(self.faults, fault.value))
            if draw < share:
                return fault
            draw -= share
        return None


def corrupt(reply: MetaGradient, site: str, order: int) -> MetaGradient:
    """The reply with one of the damages that a coordinator must notice: NaN, inf, a shape, a huge norm."""
    kind = derive_seed("corrupt", site, order) % 4
    name = min(reply.gradient)
    tensor = reply.gradient[name].clone()
    if kind < 2:
        tensor.view(-1)[0] = float("nan") if kind == 0 else float("inf")
    elif kind == 2:
        tensor = tensor.flatten()[:-1] if tensor.numel() > 1 else tensor.repeat(2)
    else:
        tensor = tensor + 1e9
    return replace(reply, gradient={**reply.gradient, name: tensor})
