"""The engine: any learner's per-task meta-gradients, as fast as they can be had.

What it computes is specified by `meta_gradient.task_gradients_looped`; how depends on the model. Rows of a
table cost more in dispatch than in arithmetic: all tasks at once by `vmap`, and traced into one
compiled call once a shape has come up often enough to pay for it. Convolutions are the other way round (a
vmapped one becomes a slower, grouped one): a loop over tasks, on several threads. The rule is from
`clinimeta bench adaptation`, whose table docs/benchmarks.md shows.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_map

from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.meta_gradient import TaskGradients, with_outputs
from clinimeta.common.algorithms.tracing import traced
from clinimeta.common.models.base import channels_last
from clinimeta.common.params import map_params
from clinimeta.common.tasks.batch import pad_batch, unstack, without_marks
from clinimeta.common.tasks.episode import Episode
from clinimeta.common.typing import Params

Route = Literal["vmap", "threads"]
TRACE_AFTER = 128
"""Calls of one shape before it is traced: about what tracing costs, in calls (docs/benchmarks.md)."""
ROW_SIZES: tuple[int, ...] = (
    *range(1, 13),
    *(14, 15, 16, 18, 20, 22, 25, 28, 30, 32, 35, 40, 45, 50, 55, 60, 64, 70, 75, 80, 90, 100),
    *(110, 120, 128, 140, 150, 160, 180, 200, 225, 256),
)
"""What rows are padded to: the sizes that people choose, and between them steps of about a tenth."""


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class Engine:
    """Meta-gradients and adaptations of one learner. Not more than a cache: same input, same bits."""

    learner: MetaLearner[Any]
    device: str = "cpu"
    trace_after: int = TRACE_AFTER
    threads: int = field(default_factory=processors)
    _uses: Counter[Hashable] = field(default_factory=Counter)
    _compiled: dict[Hashable, Callable[..., Any]] = field(default_factory=dict)
    _compiling: threading.Lock = field(default_factory=threading.Lock)

    @property
    def route(self) -> Route:
        """How tasks are put side by side: decided by the model and the device."""
        on_processor = self.device == "cpu"  # a GPU has its own threads
        return "threads" if self.learner.model.convolutional and on_processor else "vmap"

    def describe(self) -> str:
        """What was chosen and what was compiled, for people; empty before the first call."""
        calls = sum(self._uses.values())
        if not calls:
            return ""
        ways = {"vmap": "all tasks in one call", "threads": f"task by task on {self.threads} threads"}
        traced = f"{len(self._compiled)} of {len(self._uses)} shapes traced"
        return f"{ways[self.route]}, {traced}, on {self.device}"

    def task_gradients(self, params: Params, batch: Episode, *, own_params: bool = False) -> TaskGradients:
        """One meta-gradient a task of a stacked batch; with `own_params` each task has its own.

        Rows are padded to few sizes, so that few shapes come up; padding changes nothing. What comes back
        lies on the engine's device.
        """
        queries = batch.query.targets.shape[1]
        if self.route == "vmap":
            batch = pad_batch(batch, _row_size(batch.support.targets.shape[1]), _row_size(queries))
        batch = without_marks(batch)
        params, batch = self._here((params, batch))
        with_params = 0 if own_params else None
        one = grad(with_outputs(self.learner), has_aux=True)
        if self.route == "threads":
            computed = self._each("gradients", one, params, batch, own=own_params)
        else:
            every = vmap(one, in_dims=(with_params, 0))
            computed = self._call(("gradients", own_params), every, params, batch)
        gradients, (loss, outputs) = computed
        return TaskGradients(gradients, loss, outputs[:, :queries])

    def adapt_and_predict(self, params: Params, batch: Episode) -> Float[Tensor, "tasks query outputs"]:
        """Query outputs after adaptation; nothing is learned."""
        params, batch = self._here((params, without_marks(batch)))

        def one(params: Params, episode: Episode) -> Tensor:
            adapted = self.learner.adapt(params, episode.support)
            return self.learner.predict(params, adapted, episode.query.inputs)

        with torch.no_grad():
            if self.route == "threads":
                result: Tensor = self._each("predictions", one, params, batch, own=False)
            else:
                result = self._call("predictions", vmap(one, in_dims=(None, 0)), params, batch)
        return result.cpu()

    def _here(self, tensors: Any) -> Any:
        return tensors if self.device == "cpu" else tree_map(lambda x: x.to(self.device), tensors)

    def _call(self, kind: Hashable, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it, or from the `trace_after`-th time on what it was compiled to for these shapes."""
        key = (kind, _signature(arguments))
        if key not in self._compiled:
            self._uses[key] += 1
            if self._uses[key] <= self.trace_after:
                return function(*arguments)
            with self._compiling:
                if key not in self._compiled:
                    self._compiled[key] = traced(function, *arguments)
        with torch.inference_mode():
            return self._compiled[key](*arguments)

    def _each(
        self, kind: Hashable, function: Callable[..., Any], params: Params, batch: Episode, *, own: bool
    ) -> Any:
        """Task by task; torch lets go of Python's lock while it convolves, so threads do help."""
        tasks = unstack(batch)
        grad_enabled = torch.is_grad_enabled()
        shared = None if own else map_params(channels_last, params)

        def run(i: int) -> Any:
            theirs = shared or map_params(lambda p: channels_last(p[i]), params)
            with torch.set_grad_enabled(grad_enabled):  # a new thread does not inherit it
                return self._call(kind, function, theirs, tasks[i])

        alone = self.threads == 1 or len(tasks) == 1
        results = (map if alone else _pool(self.threads).map)(run, range(len(tasks)))
        return tree_map(lambda *leaves: torch.stack(leaves), *results)


def engine(learner: MetaLearner[Any], device: str = "cpu") -> Engine:
    """The engine of a learner; equal learners share one and what it has compiled."""
    return _engine(cast(Hashable, learner), device)


@lru_cache(maxsize=64)
def _engine(learner: Any, device: str) -> Engine:
    return Engine(learner, device)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tasks")


def _row_size(rows: int) -> int:
    """The next of the sizes; beyond them the number itself."""
    for size in ROW_SIZES:
        if rows <= size:
            return size
    return rows


def _signature(arguments: Any) -> Hashable:
    leaves, spec = tree_flatten(arguments)
    return str(spec), tuple((tuple(x.shape), x.dtype, x.device) for x in leaves)
