"""`clinimeta bench rounds`: what a simulated round costs, in time and memory, for more and more hospitals.

Every hospital has 50 rows of 32 features and 10 classes and gives one task, 25 rows to adapt on and 25 to
be judged on. The network (32-64-64-10) has 6,922 parameters. What is timed is a round's weighted
mean meta-gradient (or, of FedAvg, mean weights); the outer step is the same small thing for all. Each
measurement has a process of its own, so that its peak of memory is its own.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from clinimeta.client.app import client_app
from clinimeta.client.meta_gradients import draw
from clinimeta.client.site import Site
from clinimeta.common.algorithms.engine import engine
from clinimeta.common.params import map_params, scaled
from clinimeta.common.plan import Choice, Plan
from clinimeta.common.records import MetaGradientOrder
from clinimeta.common.rng import generator
from clinimeta.common.study import Training
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import examples
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.tasks.table import Records, Table
from clinimeta.common.typing import Params
from clinimeta.server.app import Job, OverTheGrid, fresh_nonce
from clinimeta.server.link import Link
from clinimeta.server.store import RunDir
from clinimeta.simulations.batched import Together
from clinimeta.simulations.benchmarks import fedavg, peers
from clinimeta.simulations.benchmarks.measuring import (
    Timing,
    check_equal,
    median,
    peer,
    relative_error,
)
from clinimeta.simulations.loopback import LoopbackGrid, VirtualClock

ROWS, FEATURES, CLASSES, HALF = 50, 32, 10, 25
MAML_WORK = "MAML, 2nd order, 5 inner steps"
FEDAVG_WORK = "FedAvg, 5 local steps of all 50 rows"
NEVER = 10**9


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one process: a first round (with tracing), the median of the later ones, and memory in MiB."""

    first: Timing
    later: Timing
    base_mib: float
    peak_mib: float
    gradient: Mapping[str, Shaped[np.ndarray, "..."]] = field(repr=False)


@dataclass(slots=True)
class Laps:
    """A stop watch: `lap` is called before the first round and after each; `busy` gives CPU seconds."""

    busy: Callable[[], float] = time.process_time
    times: list[Timing] = field(default_factory=list)

    def lap(self) -> None:
        """Note the time."""
        self.times.append(Timing(self.busy(), time.perf_counter()))

    def rounds(self) -> list[Timing]:
        """Seconds of each round."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [Timing(b.cpu_s - a.cpu_s, b.wall_s - a.wall_s) for a, b in pairs]


Rounds = Callable[[int, int, Laps], Params]
"""(sites, rounds, laps) -> the first round's mean meta-gradient."""


@dataclass(frozen=True, slots=True)
class Tables(Mapping[str, Table]):
    """So many hospitals' rows, made when they are asked for and not kept."""

    sites: int

    def __getitem__(self, name: str) -> Table:
        """Noise, whose first numbers decide the class."""
        rng = generator("bench rounds", name)
        x = torch.randn(ROWS, FEATURES, generator=rng)
        rows = examples({"table": x}, x[:, :CLASSES].argmax(dim=1))
        return Table(rows, torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.bool))

    def __iter__(self) -> Iterator[str]:
        """Their names, sorted."""
        return (f"site-{number:06d}" for number in range(self.sites))

    def __len__(self) -> int:
        """How many there are."""
        return self.sites


def plan(work: str) -> Plan:
    """The same tables and network for all; FedAvg's local steps take all rows as the query set."""
    columns = tuple(Column(name=f"x{i}") for i in range(FEATURES))
    fedavg_work = work == FEDAVG_WORK
    maml = Choice.model_validate({"name": "maml", "inner_steps": 5, "inner_rate": 0.1})
    return Plan(
        study="bench",
        arm="fedavg" if fedavg_work else "maml",
        application="diagnosis",
        table=Schema(target="y", classes=tuple(map(str, range(CLASSES))), columns=columns),
        model=Choice.model_validate({"name": "mlp", "hidden": [64, 64]}),
        algorithm=Choice.model_validate({"name": "fine_tune", "steps": 0}) if fedavg_work else maml,
        episodes=Episodes(
            draw="rows", shots=(0 if fedavg_work else HALF,), query=ROWS if fedavg_work else HALF, tasks=1
        ),
        local_meta_steps=5 if fedavg_work else 1,
        local_rate=0.05,
        proximal=0.0,
        weighting="tasks",
        seed=0,
    )


def job(work: str) -> Job:
    """A training that keeps nothing."""
    return Job("bench", plan(work), Training(), RunDir(Path("unused")))


def start(work: str) -> Params:
    """Meta-parameters."""
    return plan(work).learner().init(generator("bench rounds"))


def batched(sites: int, rounds: int, laps: Laps, *, work: str = MAML_WORK, trace: bool = True) -> Params:
    """`clinimeta simulate --engine batched`."""
    engine(plan(work).learner()).trace_after = 0 if trace else NEVER
    tables, params = Tables(sites), start(work)
    together = Together(job(work), {}, tables)
    return _repeat(laps, rounds, lambda r: _mean(together.meta_gradient(r, params, list(tables))))


def loopback(sites: int, rounds: int, laps: Laps, *, trace: bool = True) -> Params:
    """`clinimeta simulate`: every message through Flower's wire encoding."""
    engine(plan(MAML_WORK).learner()).trace_after = 0 if trace else NEVER
    tables, params = Tables(sites), start(MAML_WORK)
    hospitals = {name: Site(name, _records(table)) for name, table in tables.items()}
    clock = VirtualClock()
    grid = LoopbackGrid(
        client_app(lambda context: hospitals[str(context.node_config["site"])]),
        {name: {"site": name} for name in hospitals},
        clock,
    )
    link = Link(grid, clock, deadline_s=60.0, poll_s=1.0)
    link.introduce(fresh_nonce)
    over = OverTheGrid(job(MAML_WORK), link, fresh_nonce)
    return _repeat(laps, rounds, lambda r: _mean(over.meta_gradient(r, params, link.sites)))


def torch_loop(sites: int, rounds: int, laps: Laps) -> Params:
    """Site by site in plain torch: `peers.clone_and_adapt` on the tasks that clinimeta's sites draw."""
    tables, params, chosen = Tables(sites), start(MAML_WORK), plan(MAML_WORK)
    learner: Any = chosen.learner()
    module = peers.module_of(learner.model, params)

    def one(number: int) -> Params:
        order = MetaGradientOrder("", "bench", number, b"", params)
        module.zero_grad()
        for name, table in tables.items():
            peers.clone_and_adapt(module, learner, stack(draw(chosen, order, name, table, 0)))
        return scaled(map_params(torch.clone, peers.gradients_of(module, params)), 1 / sites)

    return _repeat(laps, rounds, one)


def by_pfl(sites: int, rounds: int, laps: Laps) -> Params:
    """Apple's pfl-research (Granqvist et al. 2024)."""
    return _change(fedavg.by_pfl(Tables(sites), _module(), rounds, laps.lap))


def by_flower(sites: int, rounds: int, laps: Laps) -> Params:
    """Flower's simulation with Ray (Beutel et al. 2020); CPU seconds of all its processes."""
    laps.busy = fedavg.family_cpu_s
    return _change(fedavg.by_flower(Tables(sites), _module(), rounds, laps.lap))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is run, what it computes, and for how many sites: label of the engine -> what to time."""

    engine: str
    work: str
    run: Rounds
    sites: tuple[int, ...]
    needs: str = ""


def candidates(*, quick: bool) -> list[Candidate]:
    """What is measured; peers where they are installed."""
    untraced, averaged = partial(batched, trace=False), partial(batched, work=FEDAVG_WORK)
    few, many = (10, 100), (100, 1000)
    everything = [
        Candidate("clinimeta, batched", MAML_WORK, batched, (100,) if quick else (10, *many, 10_000)),
        Candidate("clinimeta, batched before tracing", MAML_WORK, untraced, many),
        Candidate("clinimeta, loopback", MAML_WORK, loopback, (10,) if quick else few),
        Candidate("torch loop (clone and adapt)", MAML_WORK, torch_loop, few),
    ]
    if not quick:
        everything += [
            Candidate("clinimeta, batched", FEDAVG_WORK, averaged, many),
            Candidate("pfl", FEDAVG_WORK, by_pfl, many, needs="pfl"),
            Candidate("Flower with Ray", FEDAVG_WORK, by_flower, few, needs="ray"),
        ]
    return [c for c in everything if not c.needs or peer(c.needs)]


def measure(
    chosen: list[Candidate], rounds: int, notify: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """One row for each candidate and number of sites; small ones take thrice the rounds, which are noisier.

    Raises:
        UnequalWorkError: two that say they compute the same do not.
    """
    rows, gradients = [], dict[tuple[str, int], Params]()
    with fresh_processes() as pool:
        for candidate in chosen:
            for sites in candidate.sites:
                notify(f"{candidate.engine}, {sites:,} sites: {candidate.work}")
                later = rounds if sites >= 1000 else 3 * rounds
                found = pool.submit(_alone, candidate.run, sites, later).result()
                gradient = {name: torch.from_numpy(g) for name, g in found.gradient.items()}
                expected = gradients.setdefault((candidate.work, sites), gradient)
                error = relative_error(gradient, expected)
                check_equal(f"{sites} sites, {candidate.work}", {candidate.engine: error})
                rows.append(_row(candidate, sites, later, found))
    return rows


def fresh_processes() -> Executor:
    """One process at a time, a new one for each task, its imports done."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(1, mp_context=processes, max_tasks_per_child=1)


def _row(candidate: Candidate, sites: int, rounds: int, found: Measured) -> dict[str, Any]:
    return {
        "engine": candidate.engine,
        "computes": candidate.work,
        "sites": sites,
        "cpu_s": found.later.cpu_s,
        "wall_s": found.later.wall_s,
        "first_cpu_s": found.first.cpu_s,
        "cpu_ms_a_site": 1e3 * found.later.cpu_s / sites,
        "base_mib": round(found.base_mib),
        "peak_mib": round(found.peak_mib),
        "rounds": rounds,
    }


def _alone(run: Rounds, sites: int, rounds: int) -> Measured:
    """In a fresh process; the first of the rounds is apart."""
    torch.set_num_threads(1)
    laps, base = Laps(), _peak_mib()
    gradient = run(sites, rounds + 1, laps)
    first, *later = laps.rounds()
    arrays = {name: g.numpy() for name, g in gradient.items()}  # tensors would need a living process
    return Measured(first, median(later), base, _peak_mib(), arrays)


def _peak_mib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _repeat(laps: Laps, rounds: int, one: Callable[[int], Params]) -> Params:
    laps.lap()
    found = []
    for number in range(1, rounds + 1):
        gradient = one(number)
        laps.lap()
        found.append(gradient if number == 1 else {})
    return found[0]


def _mean(done: Any) -> Params:
    gradient: Params = done.aggregate.gradient
    return gradient


def _module() -> torch.nn.Module:
    learner: Any = plan(FEDAVG_WORK).learner()
    return peers.module_of(learner.model, start(FEDAVG_WORK))


def _change(reached: list[Tensor]) -> Params:
    """What FedAvg's mean weights mean as a meta-gradient: the way from the start, in units of the rate."""
    chosen, received = plan(FEDAVG_WORK), start(FEDAVG_WORK)
    pairs = zip(received.items(), map(peers.turned, reached), strict=True)
    return {name: (before - after) / chosen.local_rate for (name, before), after in pairs}


def _records(table: Table) -> Records:
    """The rows as a hospital's file gives them."""
    columns = table.rows.inputs["table"].T.tolist()
    cells = {f"x{i}": [repr(value) for value in column] for i, column in enumerate(columns)}
    return Records("bench", cells | {"y": [str(value) for value in table.rows.targets.tolist()]})
