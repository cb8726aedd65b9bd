"""Tune every arm of the default study, with the same number of trainings, on federations made for it.

    python -m clinimeta.simulations.benchmarks.tune [--trials 16] [--processes 2] [--out FILE]

The validation federations are the study's generator under other seeds; in each, the last hospitals are
held out and adapt, as in the study. The study's own federation is not touched. Every trained arm gets
`trials` random draws from its space in `SPACES`; a baseline that adapts something (FedAvg's model, fresh
weights) is also given the best of all `ADAPTATIONS`, so it is tuned more, never less, than meta-learning.
What counts is the AUROC at the support size that the study asks about, a mean over hospitals and
federations. The winners are then run once more on fresh federations (`CONFIRMATION`), because the best
of many trials looks better than it is. FedAvg alone and fine-tuned share one training in the study, so the
one that fine-tunes best is taken.

Trainings are a plain loop over rounds and sites, which a test proves equal to the federation's.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clinimeta.common.algorithms.meta_gradient import task_gradients
from clinimeta.common.metrics import auroc
from clinimeta.common.params import add, map_params, scaled
from clinimeta.common.rng import derive_seed, generator
from clinimeta.common.settings import parse
from clinimeta.common.study import Arm, Choice, Plan, Study
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.sampler import draw_episodes
from clinimeta.common.tasks.table import Table
from clinimeta.common.typing import Params
from clinimeta.server.cohort import sample_cohort
from clinimeta.simulations import studies
from clinimeta.simulations.evaluation import draws, predict
from clinimeta.simulations.federation import load, splits

VALIDATION = (101, 102, 103)
CONFIRMATION = (201, 202, 203, 204, 205, 206)
REPEATS = 5
"""Support draws a hospital and size; the study takes more."""

Options = Mapping[str, Any]
"""Dotted key of an arm -> value."""

HIDDEN: tuple[Options, ...] = tuple({"model.hidden": sizes} for sizes in ([16], [32], [32, 32]))
SHOTS: tuple[Options, ...] = tuple({"episodes.shots": s} for s in ([5], [5, 10], [1, 5, 10, 20]))

SPACES: Mapping[str, tuple[tuple[Options, ...], ...]] = {
    "maml": (
        HIDDEN,
        SHOTS,
        tuple({"training.outer.rate": rate} for rate in (0.003, 0.01)),
        # More inner steps cost more, so fewer rounds: every training takes about the same time.
        tuple(
            {"algorithm.inner_steps": steps, "training.rounds": rounds}
            for steps, rounds in ((3, 60), (5, 60), (10, 30))
        ),
        tuple({"algorithm.inner_rate": rate} for rate in (0.3, 0.6)),
    ),
    "protonet": (
        HIDDEN,
        SHOTS,
        tuple({"training.outer.rate": rate} for rate in (0.001, 0.003)),
        tuple({"algorithm.embedding": size} for size in (4, 16, 32)),
        tuple({"algorithm.prior_rows": rows} for rows in (0.0, 1.0, 3.0)),
        tuple({"training.rounds": rounds} for rounds in (60, 120)),
    ),
    "fedavg": (
        HIDDEN,
        tuple(
            {"training.local_meta_steps": steps, "training.rounds": rounds}
            for steps, rounds in ((5, 60), (5, 90), (10, 30), (10, 60))
        ),
        tuple({"training.local_rate": r, "training.outer.rate": r} for r in (0.03, 0.1, 0.3)),
        tuple({"episodes.query": rows} for rows in (16, 32, 64)),
    ),
    "local": (HIDDEN,),
}
"""Each arm's axes; a trial takes one entry of every axis. Ends of axes that were bad for their arm in a
first pass (on the same validation federations) are gone, for the baselines as for the others."""

ADAPTATIONS: tuple[Options, ...] = tuple(
    {"algorithm.steps": steps, "algorithm.rate": rate}
    for steps, rate in product((5, 10, 20, 50), (0.03, 0.1, 0.3))
)
ADAPTED_BY = {"fedavg": "fedavg-finetuned", "local": "local"}
"""Training -> the arm that adapts what it gives, under every one of `ADAPTATIONS`."""

Scores = Mapping[str, Sequence[float]]
"""Shots -> the AUROC at each held-out hospital, over all federations, in order."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of one arm and what it scored; `tried` counts the adaptations it is the best of."""

    stage: str
    arm: str
    options: Options
    seconds: float
    tried: int
    federations: int
    scores: Scores

    def spread(self, shots: str) -> tuple[float, float]:
        """Mean over the hospitals, and the standard deviation between the federations' means."""
        means = np.array(self.scores[shots]).reshape(self.federations, -1)
        means = np.nanmean(means, axis=1)
        return float(means.mean()), float(means.std(ddof=1))


@lru_cache(maxsize=16)
def federation(seed: int) -> tuple[Study, Mapping[str, Table], Mapping[str, Table]]:
    """The default study on another federation: (study, tables that train, tables that are judged)."""
    study = studies.find("default")
    data = Choice(**{**study.data.model_dump(), "seed": seed})
    evaluation = study.evaluations[0].model_copy(update={"repeats": REPEATS})
    study = study.model_copy(update={"data": data, "seeds": (seed,), "evaluations": (evaluation,)})
    tables = load(study, None).tables
    split = splits(evaluation, list(tables))[0]
    return study, {n: tables[n] for n in split.train}, {n: tables[n] for n in split.judged}


def with_options(arm: Arm, options: Options) -> Arm:
    """The arm with other hyperparameters."""
    values = arm.model_dump(mode="json")
    for key, value in options.items():
        *groups, last = key.split(".")
        group = values
        for name in groups:
            group = group[name]
        group[last] = value
    return parse(Arm, values, f"arm '{arm.name}'")


def train(plan: Plan, arm: Arm, tables: Mapping[str, Table], seed: int) -> Params:
    """Rounds of an arm in one place: every site's mean meta-gradient, their weighted mean, the outer step."""
    learner, optimizer = plan.learner(), arm.training.outer.build()
    params = learner.init(generator("init", seed))
    state = optimizer.init(params)
    for number in range(1, arm.training.rounds + 1):
        total, weight = scaled(params, 0.0), 0.0
        for site in sample_cohort(list(tables), arm.training.cohort_size, seed, number):
            rows = len(tables[site]) if plan.weighting == "rows" else arm.episodes.tasks
            total = add(total, _site_gradient(plan, params, tables[site], site, number), rows)
            weight += rows
        params, state = optimizer.update(scaled(total, 1 / weight), state, params)
    return params


def _site_gradient(plan: Plan, params: Params, table: Table, site: str, number: int) -> Params:
    """The mean over a site's tasks, or the change of several local steps divided by their rate."""
    learner, local = plan.learner(), params
    for step in range(plan.local_meta_steps):
        rng = generator("episodes", plan.seed, number, step, site)
        episodes = draw_episodes(table, plan.episodes, rng)
        mean = scaled(task_gradients(learner, local, stack(episodes)).sum(), 1 / len(episodes))
        if plan.local_meta_steps == 1:
            return mean
        local = add(local, mean, -plan.local_rate)
    return map_params(lambda a, b: (a - b) / plan.local_rate, params, local)


def judge(arm: Arm, params: Params, seed: int) -> Scores:
    """The AUROC at each held-out hospital of a federation, a mean over support draws; NaN: too few rows."""
    study, _, tables = federation(seed)
    evaluation = study.evaluations[0]
    drawn = [
        draw
        for site, table in tables.items()
        for draw in draws(evaluation, site, table, len(study.table.classes), seed)
    ]
    found: dict[tuple[str, str], list[float]] = {}
    for p in predict(study.plan(arm, seed), params, dict(tables), drawn):
        found.setdefault((p.shots, p.site), []).append(auroc(p.targets, p.probabilities))
    return {
        str(shots): [float(np.mean(found.get((str(shots), site), [math.nan]))) for site in tables]
        for shots in evaluation.shots
    }


def run_trial(
    name: str, options: Options, seeds: Sequence[int], stage: str, adaptations: Sequence[Options]
) -> list[Trial]:
    """Train on every federation and judge: the trained arm, and the best adaptation where there are some."""
    torch.set_num_threads(1)
    trained, began = [], time.process_time()
    for seed in seeds:
        study, tables, _ = federation(seed)
        arm = with_options(study.arm(name), options)
        trained.append(train(study.plan(arm, seed), arm, tables, seed))
    seconds = (time.process_time() - began) / len(seeds)

    def trial(arm_name: str, chosen: Options, tried: int) -> Trial:
        arm = with_options(federation(seeds[0])[0].arm(arm_name), chosen)
        scores = [judge(arm, params, seed) for params, seed in zip(trained, seeds, strict=True)]
        merged = {shots: [value for s in scores for value in s[shots]] for shots in scores[0]}
        return Trial(stage, arm_name, chosen, round(seconds, 1), tried, len(seeds), merged)

    results = [] if ADAPTED_BY.get(name) == name else [trial(name, options, 1)]
    if adaptations:
        model = {key: value for key, value in options.items() if key.startswith("model.")}
        adapted = [trial(ADAPTED_BY[name], {**model, **a}, len(adaptations)) for a in adaptations]
        results.append(max(adapted, key=score))
    return results


def score(trial: Trial) -> float:
    """What tuning maximises: the mean AUROC at the support size of the study's question."""
    return trial.spread(str(studies.find("default").questions[0].shots))[0]


def sample(name: str, trials: int) -> list[Options]:
    """Distinct random settings from an arm's space; all of them where there are no more than `trials`."""
    everything = [{k: v for part in parts for k, v in part.items()} for parts in product(*SPACES[name])]
    order = np.random.default_rng(derive_seed("tune", name)).permutation(len(everything))
    return [everything[i] for i in order[:trials]]


def tune(trials: int, processes: int) -> list[tuple[Trial, bool]]:
    """All trials and whether each was chosen, then the chosen ones on fresh federations."""
    jobs = [(name, options) for name in SPACES for options in sample(name, trials)]
    with ProcessPoolExecutor(processes) as pool:
        running = [
            pool.submit(
                run_trial, name, options, VALIDATION, "tune", ADAPTATIONS if name in ADAPTED_BY else ()
            )
            for name, options in jobs
        ]
        results = [future.result() for future in running]
        best: dict[str, int] = {}
        for i, (name, _) in enumerate(jobs):  # the last result is the adapted one where there is one
            if name not in best or score(results[i][-1]) > score(results[best[name]][-1]):
                best[name] = i
        confirming = []
        for name, i in best.items():
            found = results[i][-1].options
            adaptation = (
                [{k: v for k, v in found.items() if k in ADAPTATIONS[0]}] if name in ADAPTED_BY else []
            )
            confirming.append(pool.submit(run_trial, name, jobs[i][1], CONFIRMATION, "confirm", adaptation))
        confirmed = [trial for future in confirming for trial in future.result()]
    chosen = set(best.values())
    tuned = [(trial, i in chosen) for i, result in enumerate(results) for trial in result]
    return tuned + [(trial, True) for trial in confirmed]


def write(path: Path, trials: Iterable[tuple[Trial, bool]]) -> None:
    """One line a trial: what was tried, the AUROC at each support size, its spread over federations."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        shots: list[str] = []
        for trial, chosen in trials:
            if not shots:
                shots = list(trial.scores)
                columns = [f"auroc_{s}_{part}" for s in shots for part in ("mean", "sd")]
                writer.writerow(
                    ["stage", "arm", "chosen", *columns, "federations", "seconds", "adaptations", "options"]
                )
            numbers = [f"{value:.4f}" for s in shots for value in trial.spread(s)]
            options = json.dumps(trial.options, sort_keys=True)
            writer.writerow(
                [
                    trial.stage,
                    trial.arm,
                    int(chosen),
                    *numbers,
                    trial.federations,
                    trial.seconds,
                    trial.tried,
                    options,
                ]
            )


def difference(first: Trial, second: Trial, shots: str, resamples: int = 2000) -> tuple[float, float, float]:
    """First minus second at the same hospitals, with a 95 % bootstrap interval over hospitals."""
    gaps = np.array(first.scores[shots]) - np.array(second.scores[shots])
    gaps = gaps[~np.isnan(gaps)]
    rng = np.random.default_rng(derive_seed("difference", shots))
    means = gaps[rng.integers(len(gaps), size=(resamples, len(gaps)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(gaps.mean()), float(low), float(high)


def main() -> None:
    """Tune, write the CSV, print the winners and what their confirmation says about the study's question."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tune-default.csv")
    given = parser.parse_args()
    trials = tune(given.trials, given.processes)
    write(given.out, trials)
    confirmed = {t.arm: t for t, _ in trials if t.stage == "confirm"}
    for trial, chosen in trials:
        if chosen:
            row = "  ".join(f"{s}: {m:.3f} ({d:.3f})" for s in trial.scores for m, d in [trial.spread(s)])
            print(f"{trial.stage:8} {trial.arm:17} {row}  {trial.seconds} s  {dict(trial.options)}")
    for question in studies.find("default").questions:
        for shots in confirmed[question.arm].scores:
            gap, low, high = difference(confirmed[question.arm], confirmed[question.against], shots)
            print(f"{question.arm} - {question.against} at {shots}: {gap:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
