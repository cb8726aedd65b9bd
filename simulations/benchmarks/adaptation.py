"""`clinimeta bench adaptation`: what an outer step of MAML costs, beside the libraries that people use.

One outer step: the tasks' meta-gradients for one set of meta-parameters, and their sum. Every candidate is
first held to the looped specification, so that only equal work is timed. Sums of gradients are what the
other libraries make; clinimeta's are per task and then added up, which is inside its time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from clinimeta.common.algorithms.engine import Engine
from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.algorithms.meta_gradient import task_gradients, task_gradients_looped, with_outputs
from clinimeta.common.algorithms.tracing import traced
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.applications.regression import Regression
from clinimeta.common.models.conv4 import Conv4
from clinimeta.common.models.mlp import MLP
from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, examples
from clinimeta.common.typing import Params
from clinimeta.simulations.benchmarks import peers
from clinimeta.simulations.benchmarks.measuring import (
    Timing,
    check_equal,
    cores,
    relative_error,
    take_turns,
    timed,
)

ENGINE, BEFORE = "clinimeta", "clinimeta, before tracing"
VMAP, VMAP_TRACED = "clinimeta, vmapped", "clinimeta, vmapped and traced"
SPECIFICATION = "clinimeta, task by task"
TWO_THREADS = ", 2 torch threads"
ONE_THREAD = "clinimeta, 1 thread"
NEVER = 10**9


@dataclass(frozen=True, slots=True)
class Setting:
    """A learner and the size of its outer step: tasks, and rows of each task's support and query set."""

    name: str
    learner: MAML
    tasks: int
    support: int
    query: int
    turns: int

    @property
    def title(self) -> str:
        """What a table calls it."""
        order = "1st order" if self.learner.first_order else "2nd order"
        return f"{self.name}, T={self.tasks} K={self.learner.inner_steps}, {order}"

    def draw(self) -> tuple[Params, Episode]:
        """Meta-parameters and a batch of tasks of noise; what is in them costs nothing."""
        rng, classes = generator("adaptation", self.name), self.learner.objective.classes

        def rows(count: int) -> tuple[Tensor, Tensor]:
            inputs = torch.randn(count, self.learner.model.features, generator=rng)  # type: ignore[attr-defined]
            targets = torch.arange(count) % classes if classes else torch.randn(count, generator=rng)
            return inputs, targets

        def episode() -> Episode:
            (x, y), (more, answers) = rows(self.support), rows(self.query)
            return Episode(examples({"table": x}, y), examples({"table": more}, answers))

        return self.learner.init(rng), stack([episode() for _ in range(self.tasks)])


def settings(*, quick: bool) -> list[Setting]:
    """What is measured; 5-way 1-shot with 15 query rows a class, the sinusoid 10-shot."""
    five, wave = Diagnosis(5), Regression(0)
    table, sinusoid = MLP(13, 5, hidden=(64, 64)), MLP(1, 1, hidden=(40, 40))
    image = Conv4(28 * 28, 5, filters=64, norm="batch")
    exact = Setting("MLP 13-64-64-5", MAML(table, five), 32, 5, 75, 3 if quick else 15)
    wavy = Setting("sinusoid MLP 1-40-40-1", MAML(sinusoid, wave, 1, 0.01), 25, 10, 10, exact.turns)
    seen = Setting("4-conv, 64 filters", MAML(image, five, 1, 0.4), 16, 5, 75, 3)
    if quick:
        return [exact, wavy, replace(seen, tasks=2, turns=1)]
    return [
        exact,
        replace(exact, learner=MAML(table, five, first_order=True)),
        replace(exact, tasks=4),
        wavy,
        replace(wavy, learner=MAML(sinusoid, wave, 5, 0.01)),
        seen,
    ]


def measure(chosen: list[Setting], notify: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """One row for each setting and candidate.

    Raises:
        UnequalWorkError: a candidate's meta-gradient is not the specification's.
    """
    torch.set_num_threads(1)
    traced(torch.sin, torch.zeros(1))  # the tracer's own import, some seconds once a process
    rows = []
    for setting in chosen:
        notify(setting.title)
        rows += list(_rows(setting))
    return rows


def _rows(setting: Setting) -> Iterator[dict[str, Any]]:
    params, batch = setting.draw()
    candidates, fast = (
        ours(setting, params, batch),
        Engine(setting.learner, trace_after=0, threads=min(2, cores())),
    )
    first = timed(lambda: fast.task_gradients(params, batch))
    candidates = {ENGINE: lambda: fast.task_gradients(params, batch).sum()} | candidates
    others = peers.candidates(setting.learner, params, batch)
    reference = next(iter(others))
    candidates |= others
    if setting.learner.model.convolutional and cores() > 1:
        candidates[reference + TWO_THREADS] = _on_two_threads(others[reference])
    expected = candidates[SPECIFICATION]()
    errors = {name: relative_error(step(), expected) for name, step in candidates.items()}
    check_equal(setting.title, errors)
    found = take_turns(candidates, setting.turns)
    for name, timing in found.items():
        yield {
            "setting": setting.title,
            "candidate": name,
            "cpu_s": timing.cpu_s,
            "wall_s": timing.wall_s,
            "times_cpu": found[reference].cpu_s / timing.cpu_s,
            "times_wall": found[reference].wall_s / timing.wall_s,
            "reference": reference,
            "turns": setting.turns,
            "difference": errors[name],
            **(
                _tracing(setting, first, found)
                if name == ENGINE
                else {"trace_cpu_s": None, "pays_after": None}
            ),
        }


def ours(setting: Setting, params: Params, batch: Episode) -> dict[str, Callable[[], Params]]:
    """The routes that the engine could have taken."""
    learner = setting.learner
    routes: dict[str, Callable[[], Params]] = {
        VMAP: lambda: task_gradients(learner, params, batch).sum(),
        SPECIFICATION: lambda: task_gradients_looped(learner, params, batch).sum(),
    }
    if learner.model.convolutional:
        untraced = Engine(learner, trace_after=NEVER, threads=min(2, cores()))
        every = vmap(grad(with_outputs(learner), has_aux=True), in_dims=(None, 0))
        compiled = cache(lambda: traced(every, params, batch))  # not before it is asked for

        def vmapped_and_traced() -> Params:
            with torch.inference_mode():
                gradients: Params = compiled()(params, batch)[0]
                return map_params(lambda g: g.sum(dim=0), gradients)

        alone = Engine(learner, trace_after=0, threads=1)
        routes[ONE_THREAD] = lambda: alone.task_gradients(params, batch).sum()
        routes[BEFORE] = lambda: untraced.task_gradients(params, batch).sum()
        if setting.turns > 1:  # many seconds for what is never chosen
            routes[VMAP_TRACED] = vmapped_and_traced
    return routes


def _tracing(setting: Setting, first: Timing, found: Mapping[str, Timing]) -> dict[str, Any]:
    """CPU seconds that tracing took, and after how many calls it has paid (None: never).

    A call is what the engine counts: all tasks where it is vmapped, one task where it loops over them.
    """
    threaded = setting.learner.model.convolutional
    took = max(0.0, first.cpu_s - found[ENGINE].cpu_s)
    saved = found[BEFORE if threaded else VMAP].cpu_s - found[ENGINE].cpu_s
    calls = took / saved * (setting.tasks if threaded else 1) if saved > 0 else None
    return {"trace_cpu_s": took, "pays_after": None if calls is None else round(calls)}


def _on_two_threads(step: Callable[[], Params]) -> Callable[[], Params]:
    def run() -> Params:
        torch.set_num_threads(2)
        try:
            return step()
        finally:
            torch.set_num_threads(1)

    return run
