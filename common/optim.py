"""Outer optimizers: what the coordinator does with the aggregated meta-gradient.

The state is a flat mapping of tensors, so that a checkpoint keeps it and a resumed run goes on as if
nothing had happened.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt, Lt
from pydantic import Field, model_validator
from torch import Tensor

from clinimeta.common.params import add, map_params, norm, part, prefixed, scaled, zeros_like
from clinimeta.common.settings import Settings
from clinimeta.common.typing import Params


@runtime_checkable
class OuterOptimizer(Protocol):
    """Turns a gradient into new parameters; returns the new state and leaves the old one alone."""

    def init(self, params: Params) -> Params:
        """The state before the first step."""
        ...

    def update(self, gradient: Params, state: Params, params: Params) -> tuple[Params, Params]:
        """One step down the gradient: (new parameters, new state)."""
        ...


@dataclass(frozen=True, slots=True)
class SGD:
    """Gradient descent with optional heavy-ball momentum (Polyak 1964)."""

    rate: float
    momentum: float = 0.0

    def init(self, params: Params) -> Params:
        """The velocity, zero."""
        return prefixed(zeros_like(params), "velocity")

    def update(self, gradient: Params, state: Params, params: Params) -> tuple[Params, Params]:
        """V <- momentum v + g; params <- params - rate v."""
        velocity = add(gradient, part(state, "velocity"), self.momentum)
        return add(params, velocity, -self.rate), prefixed(velocity, "velocity")


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam (Kingma & Ba, ICLR 2015, algorithm 1), or with `additive` Yogi (Zaheer et al., NeurIPS 2018).

    As a server optimizer this is FedAdam or FedYogi (Reddi et al., ICLR 2021) with bias correction.
    """

    rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    additive: bool = False

    def init(self, params: Params) -> Params:
        """First and second moment and the step count, all zero."""
        return {
            **prefixed(zeros_like(params), "first"),
            **prefixed(zeros_like(params), "second"),
            "step": torch.zeros((), dtype=torch.int64),
        }

    def update(self, gradient: Params, state: Params, params: Params) -> tuple[Params, Params]:
        """One bias-corrected step."""
        first = map_params(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, part(state, "first"), gradient)
        second = map_params(self._second_moment, part(state, "second"), gradient)
        step = state["step"] + 1
        debias1, debias2 = 1 - self.beta1 ** int(step), 1 - self.beta2 ** int(step)
        new = map_params(
            lambda p, m, v: p - self.rate * (m / debias1) / ((v / debias2).sqrt() + self.epsilon),
            params,
            first,
            second,
        )
        return new, {**prefixed(first, "first"), **prefixed(second, "second"), "step": step}

    def _second_moment(self, v: Tensor, g: Tensor) -> Tensor:
        if self.additive:
            return v - (1 - self.beta2) * torch.sign(v - g * g) * g * g
        return self.beta2 * v + (1 - self.beta2) * g * g


@dataclass(frozen=True, slots=True)
class Clipped:
    """Cuts a gradient whose norm is over `norm` down to it, then leaves it to `optimizer`.

    Learned step sizes need it: one task near the edge of divergence can outweigh all others.
    """

    optimizer: OuterOptimizer
    norm: float

    def init(self, params: Params) -> Params:
        """The optimizer's own state."""
        return self.optimizer.init(params)

    def update(self, gradient: Params, state: Params, params: Params) -> tuple[Params, Params]:
        """One step down the gradient, shortened where it is too long."""
        size = norm(gradient)
        shorter = scaled(gradient, self.norm / size) if size > self.norm else gradient
        return self.optimizer.update(shorter, state, params)


class OuterSettings(Settings):
    """The outer optimizer of a study: its name, its step size, momentum for `sgd`, and where to clip."""

    name: Literal["sgd", "adam", "yogi"] = "adam"
    rate: Annotated[float, Gt(0)] = 1e-3
    momentum: Annotated[float, Ge(0), Lt(1)] = Field(default=0.0, description="of sgd; else leave it out")
    clip: Annotated[float, Ge(0)] = Field(default=0.0, description="largest norm; 0: any")

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> "OuterSettings":
        if self.momentum and self.name != "sgd":
            raise ValueError(f"no momentum for '{self.name}': it has its own")
        return self

    def build(self) -> OuterOptimizer:
        """The optimizer itself."""
        return Clipped(self._plain(), self.clip) if self.clip else self._plain()

    def _plain(self) -> OuterOptimizer:
        if self.name == "sgd":
            return SGD(self.rate, self.momentum)
        if self.name == "adam":
            return Adam(self.rate)
        return Adam(self.rate, epsilon=1e-3, additive=True)
