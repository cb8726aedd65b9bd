"""Things that go wrong on the way to or from a site, on purpose and reproducibly."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import torch

from clinimeta.common.records import Masking, MetaGradient, Quantised, Reply
from clinimeta.common.rng import derive_seed, generator
from clinimeta.common.study import Faults
from clinimeta.common.typing import Params


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


R = TypeVar("R", bound=Reply)


def corrupt(reply: R, site: str, order: int) -> R:
    """A meta-gradient with one of the damages that a coordinator must notice; other replies stay whole.

    NaN, infinity, another shape or a huge norm; in whole numbers the last two; under masks, where numbers
    cannot be looked at, an answer cut short or left out.
    """
    kind = derive_seed("corrupt", site, order) % 4
    match reply:
        case MetaGradient():
            return replace(reply, gradient=_damaged(reply.gradient, kind))
        case Quantised():
            short, huge = reply.words[:-4], b"\xff\xff\xff\x7f" * (len(reply.words) // 4)
            return replace(reply, words=short if kind < 2 else huge)
        case Masking():
            cut = tuple(answer[:-1] for answer in reply.answers)
            return replace(reply, answers=cut if kind < 2 else ())
        case _:
            return reply


def _damaged(gradient: Params, kind: int) -> Params:
    name = min(gradient)
    tensor = gradient[name].clone()
    if kind < 2:
        tensor.view(-1)[0] = float("nan") if kind == 0 else float("inf")
    elif kind == 2:
        tensor = tensor.flatten()[:-1] if tensor.numel() > 1 else tensor.repeat(2)
    else:
        tensor = tensor + 1e9
    return {**gradient, name: tensor}
