"""Omniglot, the standard few-shot benchmark: characters of alphabets, centralised and federated.

    python -m clinimeta.simulations.benchmarks.omniglot train --data DATA --learner maml --ways 5 --shots 1 \
        --how federated --steps 2500 --out runs/omniglot
    python -m clinimeta.simulations.benchmarks.omniglot judge --data DATA --out runs/omniglot

`train` goes on from the newest checkpoint of the same command, also after `kill -9`. `judge` takes every
finished training in the folder to `--episodes` episodes of test characters (once) and writes
`simulations/benchmarks/results/omniglot.csv`.

Protocol: 28 x 28 images, ink 1 and paper 0; a character turned by 90, 180 or 270 degrees is another
character (Santoro et al. 2016); the split of Vinyals et al. 2016: the alphabets of its training and
validation parts train, those of its test part judge. Nothing is chosen by a score: steps and rates are
fixed beforehand, the last weights are judged. Federated: every training alphabet is a site, draws its
episodes from its own characters, and sends the sum of its meta-gradients; centralised: episodes draw from all
training characters, as in the papers. Both take equally many episodes a step.
"""

import argparse
import csv
import dataclasses
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.algorithms.engine import Engine, engine
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.metrics import Mean
from clinimeta.common.models.conv4 import Conv4
from clinimeta.common.optim import Adam
from clinimeta.common.records import MetaGradient
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, examples
from clinimeta.server.aggregation import Limits, aggregate
from clinimeta.server.cohort import sample_cohort
from clinimeta.server.store import RunDir
from clinimeta.server.training import TrainingState, begin, step
from clinimeta.simulations.datasets.omniglot import Omniglot

SIDE = 28
RATE = 1e-3
CHECKPOINT_EVERY = 50
PUBLISHED = {
    "protonet": {(5, 1): 98.8, (5, 5): 99.7, (20, 1): 96.0, (20, 5): 98.9},
    "maml": {(5, 1): 98.7, (5, 5): 99.9, (20, 1): 95.8, (20, 5): 98.9},
}
"""Per cent: Snell et al. 2017, table 1; Finn et al. 2017, table 1."""
COLUMNS = (
    *("learner", "how", "train_ways", "train_shots", "ways", "shots", "steps", "episodes_a_step"),
    *("filters", "cpu_s", "episodes", "accuracy", "low", "high", "published"),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training, fixed beforehand."""

    learner: str
    how: str
    ways: int
    shots: int
    query: int
    steps: int
    episodes: int
    filters: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.learner}-{self.how}-{self.ways}way-{self.shots}shot-seed{self.seed}"

    def build(self, ways: int, *, judged: bool = False) -> MetaLearner[Any]:
        """The learner for tasks of so many ways; batch statistics of each set, as in the papers.

        MAML takes one inner step of 0.4 in training and three when judged (Finn et al. 2017, A.1).
        """
        options: dict[str, Any] = {"protonet": {"embedding": 64}}.get(self.learner, {})
        if self.learner == "maml":
            options = {"inner_steps": 3 if judged else 1, "inner_rate": 0.4}
        model = Conv4(SIDE * SIDE, ways, filters=self.filters, norm="batch")
        return ALGORITHMS.build(self.learner, options, model=model, objective=Diagnosis(ways))


@dataclass(frozen=True, slots=True)
class Characters:
    """Drawings `ink[character, drawing, row, column]`, uint8, and the characters of each pool."""

    ink: Tensor
    pools: Mapping[str, tuple[int, ...]]

    def episode(self, pool: str, ways: int, shots: int, query: int, *key: str | int) -> Episode:
        """`ways` different turned characters of the pool, `shots` and `query` drawings of each."""
        rng = generator("omniglot", pool, *key)
        members = torch.tensor(self.pools[pool])
        turned = torch.randperm(4 * len(members), generator=rng)[:ways]
        drawings = [torch.randperm(20, generator=rng)[: shots + query] for _ in turned]
        images = torch.stack(
            [
                torch.rot90(self.ink[members[t // 4]][d], int(t % 4), dims=(1, 2))
                for t, d in zip(turned.tolist(), drawings, strict=True)
            ]
        )
        table = images.flatten(2).float() / 255
        classes = torch.arange(ways)[:, None]
        support, rest = table[:, :shots].flatten(0, 1), table[:, shots:].flatten(0, 1)
        return Episode(
            examples({"table": support}, classes.expand(-1, shots).flatten()),
            examples({"table": rest}, classes.expand(-1, query).flatten()),
        )


def read(data: Path) -> tuple[Characters, Characters]:
    """Characters to train on, a pool for each alphabet and one of "all"; and those to judge on."""
    every = Omniglot().characters(data)
    ink, test = torch.from_numpy(every.ink), every.members(vinyals="test")
    trained = {name: set(every.members(name)) - set(test) for name in sorted(set(every.alphabet))}
    pools = {name: tuple(sorted(members)) for name, members in trained.items() if members}
    everyone = tuple(c for members in pools.values() for c in members)
    return Characters(ink, pools | {"all": everyone}), Characters(ink, {"all": test})


def train(recipe: Recipe, characters: Characters, folder: Path) -> None:
    """All steps that are still to do; the newest checkpoint is where it goes on."""
    run, digest = RunDir(folder), json.dumps(asdict(recipe) | {"steps": 0}, sort_keys=True)
    learner = recipe.build(recipe.ways)
    fast = engine(learner)
    state = run.latest(recipe.name, digest) or begin(learner, Adam(RATE), recipe.seed)
    clock = _Clock(folder / "trainings" / recipe.name / "progress.json")
    while state.round < recipe.steps:
        replies = {
            site: _answer(fast, state, recipe, site, tasks)
            for site, tasks in _cohort(recipe, characters, state.round + 1)
        }
        gradient = aggregate(replies, Limits(1e6, 1e6), state.params).gradient
        assert gradient is not None
        # The rate falls to a tenth over the last third: without it the last weights are noisy.
        left = (recipe.steps - state.round) / (recipe.steps / 3)
        adam = dataclasses.replace(Adam(RATE), rate=RATE * max(0.1, min(1.0, left)))
        state = step(state, gradient, adam)
        if state.round % CHECKPOINT_EVERY == 0 or state.round == recipe.steps:
            run.checkpoint(recipe.name, state, digest)
            loss = sum(r.metrics["query_loss"].total for r in replies.values())
            rows = sum(r.metrics["query_loss"].weight for r in replies.values())
            clock.note(recipe, state.round, loss / rows)


def _cohort(recipe: Recipe, characters: Characters, number: int) -> Iterator[tuple[str, list[Episode]]]:
    """Who answers in this step, and on which episodes: one each where it is federated."""
    alphabets = [name for name in characters.pools if name != "all"]
    if recipe.how == "federated":
        sites = sample_cohort(alphabets, recipe.episodes, recipe.seed, number)
        counts = dict.fromkeys(sites, recipe.episodes // len(sites))
    else:
        counts = {"all": recipe.episodes}
    for site, count in counts.items():
        key = (recipe.seed, number)
        drawn = (recipe.ways, recipe.shots, recipe.query)
        yield site, [characters.episode(site, *drawn, *key, i) for i in range(count)]


def _answer(
    fast: Engine, state: TrainingState, recipe: Recipe, site: str, tasks: list[Episode]
) -> MetaGradient:
    batch = stack(tasks)
    computed = fast.task_gradients(state.params, batch)
    measured = {"query_loss": Mean(float(computed.loss.sum()), float(len(tasks)))}
    return MetaGradient("", recipe.name, state.round, site, float(len(tasks)), computed.sum(), measured)


@dataclass(slots=True)
class _Clock:
    """CPU seconds of a training over all its starts, kept beside the checkpoints."""

    path: Path
    since: float = dataclasses.field(default_factory=time.process_time)

    def note(self, recipe: Recipe, number: int, loss: float) -> None:
        before = json.loads(self.path.read_text())["cpu_s"] if self.path.exists() else 0.0
        now = time.process_time()
        spent, self.since = before + now - self.since, now
        progress = asdict(recipe) | {"step": number, "query_loss": loss, "cpu_s": round(spent, 1)}
        self.path.write_text(json.dumps(progress))
        print(f"{recipe.name}: step {number} of {recipe.steps}, query loss {loss:.3f}", flush=True)


def judge(folder: Path, test: Characters, episodes: int) -> Iterator[dict[str, Any]]:
    """A row for each finished training and each of the benchmark's settings that it is made for."""
    for path in sorted(folder.glob("trainings/*/progress.json")):
        progress = json.loads(path.read_text())
        recipe = Recipe(**{f.name: progress[f.name] for f in dataclasses.fields(Recipe)})
        if progress["step"] < recipe.steps:
            continue
        digest = json.dumps(asdict(recipe) | {"steps": 0}, sort_keys=True)
        state = RunDir(folder).latest(recipe.name, digest)
        assert state is not None
        # An embedding serves any number of ways; initial weights serve the one they were trained for.
        for ways in (5, 20) if recipe.learner == "protonet" else (recipe.ways,):
            known = path.with_name(f"judged-{ways}way-{episodes}.json")
            if not known.exists():
                accuracy = accuracies(recipe, state, test, ways, episodes)
                known.write_text(json.dumps([float(accuracy.mean()), float(accuracy.std(ddof=1))]))
            mean, deviation = json.loads(known.read_text())
            half = 1.96 * deviation / math.sqrt(episodes)
            yield {
                "learner": recipe.learner,
                "how": recipe.how,
                "train_ways": recipe.ways,
                "train_shots": recipe.shots,
                "ways": ways,
                "shots": recipe.shots,
                "steps": recipe.steps,
                "episodes_a_step": recipe.episodes,
                "filters": recipe.filters,
                "cpu_s": progress["cpu_s"],
                "episodes": episodes,
                "accuracy": f"{100 * mean:.2f}",
                "low": f"{100 * (mean - half):.2f}",
                "high": f"{100 * min(1.0, mean + half):.2f}",
                "published": PUBLISHED[recipe.learner][ways, recipe.shots],
            }


def accuracies(
    recipe: Recipe, state: TrainingState, test: Characters, ways: int, episodes: int
) -> Float[np.ndarray, " episodes"]:
    """The accuracy of each test episode, 15 query drawings a class at 5 ways and 5 at 20."""
    fast, query = Engine(recipe.build(ways, judged=True)), 15 if ways == 5 else 5
    found = []
    for number in range(episodes):
        batch = stack([test.episode("all", ways, recipe.shots, query, "test", number)])
        outputs = fast.adapt_and_predict(state.params, batch)
        found.append(float((outputs.argmax(dim=-1) == batch.query.targets).float().mean()))
    return np.array(found)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The rows, under a line that says how they were made."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# python -m {__spec__.name} judge; torch {version('torch')}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            print(row, flush=True)


def main() -> None:
    """Train one recipe, or judge all that are trained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training, judging = commands.add_parser("train"), commands.add_parser("judge")
    for command in (training, judging):
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--out", type=Path, default=Path("runs/omniglot"))
    training.add_argument("--learner", choices=PUBLISHED, required=True)
    training.add_argument("--how", choices=("federated", "centralised"), required=True)
    training.add_argument("--query", type=int, default=5)
    training.add_argument("--filters", type=int, default=64)
    training.add_argument("--seed", type=int, default=0)
    for name in ("ways", "shots", "steps", "episodes"):
        training.add_argument(f"--{name}", type=int, required=True)
    judging.add_argument("--episodes", type=int, default=1000)
    judging.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "omniglot.csv")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    training_characters, test = read(chosen.data)
    if chosen.command == "judge":
        write(chosen.csv, judge(chosen.out, test, chosen.episodes))
        return
    recipe = Recipe(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(Recipe)})
    train(recipe, training_characters, chosen.out)


if __name__ == "__main__":
    main()
