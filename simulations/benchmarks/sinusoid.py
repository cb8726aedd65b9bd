"""Sinusoid regression (Finn, Abbeel, Levine; ICML 2017, section 5.1): the published curve, and every learner.

    python -m clinimeta.simulations.benchmarks.sinusoid curve
    python -m clinimeta.simulations.benchmarks.sinusoid learners

A task is a wave, amplitude within 0.1 to 5, phase within 0 to pi, x within -5 to 5; two hidden layers of
40. `curve`: MAML with one inner step of 0.01, 25 tasks a step, Adam 0.001, 30,000 steps, for 5, 10 and 20
shots; the error on new waves after 0 to 10 gradient steps. `learners`: every learner that predicts numbers,
5 shots, 3,000 steps, the same waves for all. Mean squared error over 1,000 new waves, 95 % intervals over
waves and seeds. Settings are the paper's, or the learner's defaults; no test wave chose any. Writes
`simulations/benchmarks/results/sinusoid-WHAT.csv` and prints its rows.
"""

import argparse
import csv
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.engine import Engine, engine
from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.applications.regression import Regression
from clinimeta.common.models.mlp import MLP
from clinimeta.common.optim import Adam
from clinimeta.common.params import is_finite, norm, scaled
from clinimeta.common.rng import generator
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.typing import Params

MODEL, OBJECTIVE = MLP(1, 1, hidden=(40, 40)), Regression(0)
TASKS, RATE, QUERY = 25, 1e-3, 10
JUDGED, JUDGED_QUERY = 1000, 100
STEPS_AFTER = (0, 1, 2, 5, 10)
CLIP = 10.0
"""Norm to which a step's meta-gradient is cut: learned step sizes need it (Meta-SGD diverges otherwise)."""
LEARNERS: Mapping[str, Mapping[str, Any]] = {
    "maml": {"inner_steps": 5, "inner_rate": 0.01},
    "maml, one step": {"inner_steps": 1, "inner_rate": 0.01},
    "maml, first order": {"inner_steps": 5, "inner_rate": 0.01, "first_order": True},
    "anil": {"inner_steps": 5, "inner_rate": 0.01},
    "meta_sgd": {"inner_steps": 5, "initial_rate": 0.01, "max_rate": 0.1},
    "maml++": {"inner_steps": 5, "initial_rate": 0.01, "max_rate": 0.1},
    "reptile": {"inner_steps": 5, "inner_rate": 0.01},
    "imaml": {"inner_rate": 0.01},
    "learned_optimizer": {},
    "hypernetwork": {},
    "neural_process": {},
    "matching": {},
    "per_fedavg": {"inner_rate": 0.01},
    "fedrep": {"head_rate": 0.01},
    "fine_tune": {"steps": 5, "rate": 0.01},
}
"""Label (a registered name, maybe a comma and more) -> hyperparameters; the others are defaults."""


def waves(tasks: int, shots: int, query: int, *key: str | int) -> Episode:
    """A stacked batch of waves."""
    rng = generator("sinusoid", *key)
    amplitude = 0.1 + 4.9 * torch.rand(tasks, 1, generator=rng)
    phase = math.pi * torch.rand(tasks, 1, generator=rng)
    x = 10 * torch.rand(tasks, shots + query, generator=rng) - 5
    y = amplitude * torch.sin(x - phase)

    def rows(part: slice) -> Examples:
        return Examples({"table": x[:, part, None]}, y[:, part], torch.ones_like(y[:, part]))

    return Episode(rows(slice(0, shots)), rows(slice(shots, None)))


def train(learner: MetaLearner[Any], shots: int, steps: int, seed: int, *, clip: float = 0.0) -> Params:
    """The meta-parameters after so many steps; one whose gradient is not finite is left out."""
    fast, adam = engine(learner), Adam(RATE)
    params = learner.init(generator("sinusoid init", seed))
    state = adam.init(params)
    for number in range(steps):
        batch = waves(TASKS, shots, max(shots, QUERY), "train", seed, number)
        gradient = scaled(fast.task_gradients(params, batch).sum(), 1 / TASKS)
        if not is_finite(gradient):
            continue
        if clip:
            gradient = scaled(gradient, min(1.0, clip / norm(gradient)))
        params, state = adam.update(gradient, state, params)
    return params


def errors(learner: MetaLearner[Any], params: Params, shots: int) -> Tensor:
    """Mean squared error on each of the new waves, after adaptation."""
    batch = waves(JUDGED, shots, JUDGED_QUERY, "test")
    outputs = Engine(learner).adapt_and_predict(params, batch).squeeze(-1)
    return (outputs - batch.query.targets).square().mean(dim=1)


def curve(steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    """The published curve: a row for each number of shots and of gradient steps on a new wave."""
    learner = MAML(MODEL, OBJECTIVE, inner_steps=1, inner_rate=0.01)
    for shots in (5, 10, 20):
        started = time.process_time()
        trained = [train(learner, shots, steps, seed) for seed in range(seeds)]
        spent = time.process_time() - started
        for after in STEPS_AFTER:
            judged = dataclasses.replace(learner, inner_steps=after)
            found = torch.stack([errors(judged, params, shots) for params in trained])
            yield {"shots": shots, "gradient_steps": after, **_estimate(found), "cpu_s": round(spent / seeds)}


def learners(steps: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Every learner at five shots."""
    for label, options in LEARNERS.items():
        learner = ALGORITHMS.build(label.split(",")[0], options, model=MODEL, objective=OBJECTIVE)
        started = time.process_time()
        trained = [train(learner, 5, steps, seed, clip=CLIP) for seed in range(seeds)]
        spent = time.process_time() - started
        found = torch.stack([errors(learner, params, 5) for params in trained])
        yield {"learner": label, **_estimate(found), "cpu_s": round(spent / seeds)}


def _estimate(found: Tensor) -> dict[str, Any]:
    """Mean over seeds and waves; the interval adds the spread over waves and over seeds."""
    seeds, tasks = found.shape
    over_waves = found.mean(dim=0).var() / tasks
    over_seeds = found.mean(dim=1).var() / seeds if seeds > 1 else torch.tensor(0.0)
    # Few seeds: Student's t with seeds - 1 degrees of freedom instead of 1.96.
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(seeds, 1.96)
    half = float((1.96**2 * over_waves + t**2 * over_seeds).sqrt())
    mean = float(found.mean())
    worst = f"{float(found.mean(dim=1).max()):.3f}"
    return {
        "mse": f"{mean:.3f}",
        "low": f"{max(0.0, mean - half):.3f}",
        "high": f"{mean + half:.3f}",
        "worst_seed": worst,
    }


def main() -> None:
    """Run one of the two, write the CSV, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("curve", "learners"))
    parser.add_argument("--steps", type=int, help="outer steps: 30000 for the curve, 3000 for the learners")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    make = curve if chosen.what == "curve" else learners
    steps = chosen.steps or (30_000 if chosen.what == "curve" else 3000)
    with (chosen.out / f"sinusoid-{chosen.what}.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(
            f"# python -m clinimeta.simulations.benchmarks.sinusoid {chosen.what} --steps {steps} "
            f"--seeds {chosen.seeds}; torch {version('torch')}\n"
        )
        writer = None
        for row in make(steps, chosen.seeds):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
