"""Every learner on a study's hospitals, judged as the study judges, and ranked.

    python -m clinimeta.simulations.benchmarks.learners eicu --data DATA --out runs/learners-eicu

takes a built-in study, replaces its arms by those of `ARMS`, and runs it (an interrupted run goes on where
it stopped). `--arms` measures some of them again and keeps the others' rows. It writes
`simulations/benchmarks/results/learners-STUDY.csv` and prints the ranked tables of
docs/results.md.

What the arms share is the study's: table and model; of its MAML arm the episodes, rounds, cohort, outer
optimizer, inner rate and inner steps; of its FedAvg arm the local training. The other hyperparameters are
the learners' defaults, fixed beforehand; no score chose any.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch

from clinimeta.common.study import Arm, Choice, Study, read_study
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary
from clinimeta.simulations import federation, studies
from clinimeta.simulations.batched import BatchedEngine
from clinimeta.simulations.benchmarks.tables import RESULTS, write_csv
from clinimeta.simulations.results import Results
from clinimeta.simulations.run import Run


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to learn: as which arm of the study it is trained, and with what in its place.

    `inner` takes the study's inner rate and steps over under these names. `body` asks for a model with
    a layer below its head.
    """

    label: str
    family: str
    like: str
    algorithm: Mapping[str, Any]
    inner: tuple[str, str] | None = None
    prior: bool = False
    body: bool = False
    training: Mapping[str, Any] | None = None
    trained_by: str = ""


OPTIMIZED = ("inner_steps", "inner_rate")
ARMS: Mapping[str, Entry] = {
    "protonet": Entry("Prototypical, Euclidean", "metric", "protonet", {"name": "protonet"}, prior=True),
    "protonet-cosine": Entry(
        "Prototypical, cosine", "metric", "protonet", {"name": "protonet", "distance": "cosine"}, prior=True
    ),
    "matching": Entry("Matching network", "metric", "protonet", {"name": "matching"}, prior=True),
    "relation": Entry("Relation network", "metric", "protonet", {"name": "relation"}, prior=True),
    "mahalanobis": Entry("Mahalanobis", "metric", "protonet", {"name": "mahalanobis"}, prior=True),
    "hypernetwork": Entry("Hypernetwork", "model", "maml", {"name": "hypernetwork"}),
    "hypernetwork-tuned": Entry(
        "Hypernetwork, then tune",
        "model",
        "maml",
        {"name": "hypernetwork"},
        inner=("tune_steps", "tune_rate"),
    ),
    "neural-process": Entry("Neural process", "model", "maml", {"name": "neural_process"}),
    "maml": Entry("MAML", "optimization", "maml", {"name": "maml"}, inner=OPTIMIZED),
    "maml-first-order": Entry(
        "MAML, first order", "optimization", "maml", {"name": "maml", "first_order": True}, inner=OPTIMIZED
    ),
    "anil": Entry("ANIL", "optimization", "maml", {"name": "anil"}, inner=OPTIMIZED, body=True),
    "meta-sgd": Entry(
        "Meta-SGD", "optimization", "maml", {"name": "meta_sgd"}, inner=("inner_steps", "initial_rate")
    ),
    "maml++": Entry(
        "MAML++ rates", "optimization", "maml", {"name": "maml++"}, inner=("inner_steps", "initial_rate")
    ),
    "reptile": Entry("Reptile", "optimization", "maml", {"name": "reptile"}, inner=OPTIMIZED),
    "imaml": Entry("iMAML", "optimization", "maml", {"name": "imaml"}),
    "learned-optimizer": Entry("Learned optimizer", "optimization", "maml", {"name": "learned_optimizer"}),
    "fedavg": Entry("FedAvg", "baseline", "fedavg", {"name": "fine_tune", "steps": 0}),
    "fedavg-finetuned": Entry(
        "FedAvg + fine-tuning", "baseline", "fedavg-finetuned", {"name": "fine_tune"}, trained_by="fedavg"
    ),
    "fedprox": Entry(
        "FedProx", "baseline", "fedavg", {"name": "fine_tune", "steps": 0}, training={"proximal": 0.1}
    ),
    "fedprox-finetuned": Entry(
        "FedProx + fine-tuning", "baseline", "fedavg-finetuned", {"name": "fine_tune"}, trained_by="fedprox"
    ),
    "per-fedavg": Entry(
        "Per-FedAvg",
        "baseline",
        "maml",
        {"name": "per_fedavg"},
        training={"local_meta_steps": 4, "local_rate": 0.05, "outer": {"name": "sgd", "rate": 0.05}},
    ),
    "fedrep": Entry("FedRep", "baseline", "maml", {"name": "fedrep"}, body=True),
    "local": Entry("Own patients only", "baseline", "local", {"name": "fine_tune"}),
}
"""The arms by name."""
BODY = Choice.model_validate({"name": "mlp", "hidden": [16]})
"""The model where the study's own is a head and nothing else."""


def with_learners(study: Study, chosen: Sequence[str] = tuple(ARMS)) -> Study:
    """The study with these arms of `ARMS` instead of its own; what it asks and publishes stays."""
    arms = [_arm(study, name, ARMS[name]).model_dump(mode="json") for name in chosen]
    values = study.model_dump(mode="json") | {"name": f"learners-{study.name}", "arms": arms}
    if values["primary"] not in chosen:
        values["primary"] = chosen[0]
    values["questions"] = [q for q in values["questions"] if {q["arm"], q["against"]} <= set(chosen)]
    return read_study(tomli_w.dumps(values), f"every learner on '{study.name}'")


def _arm(study: Study, name: str, entry: Entry) -> Arm:
    like, maml = study.arm(entry.like), study.arm("maml").algorithm.options
    options = dict(entry.algorithm)
    if entry.algorithm["name"] == like.algorithm.name:
        options = like.algorithm.options | options
    elif entry.prior:
        prior = study.arm("protonet").algorithm.options
        options |= {key: prior[key] for key in ("prior_rows", "embedding") if key in prior}
    if entry.inner:
        options |= dict(zip(entry.inner, (maml["inner_steps"], maml["inner_rate"]), strict=True))
    training = like.training.model_dump(mode="json") | dict(entry.training or {})
    changes: dict[str, object] = {
        "name": name,
        "label": entry.label,
        "algorithm": Choice.model_validate(options),
        "trained_by": entry.trained_by,
        "training": type(like.training).model_validate_json(json.dumps(training)),
    }
    if entry.body and like.model.name == "linear":
        changes["model"] = BODY
    return like.model_copy(update=changes)


def ranked(study: Study, results: dict[str, Any]) -> Iterator[str]:
    """A table for each evaluation and score, the best first by the mean over support sizes."""
    for evaluation in study.evaluations:
        for score in evaluation.scores:
            found = [
                s
                for s in results["scores"]
                if (s["evaluation"], s["score"], s["site"]) == (evaluation.name, score, "")
            ]
            sizes = [str(k) for k in evaluation.shots]
            rows = {name: {s["shots"]: s["estimate"] for s in found if s["arm"] == name} for name in ARMS}
            rows = {name: row for name, row in rows.items() if len(row) == len(sizes)}
            yield f"**{evaluation.title or evaluation.name}: {score}**"
            yield ""
            yield "| | family | " + " | ".join(f"k = {k}" for k in sizes) + " |"
            yield "| --- | --- |" + " --- |" * len(sizes)
            for name in sorted(rows, key=lambda n: -_mean(rows[n])):
                cells = " | ".join(_cell(rows[name][k]) for k in sizes)
                yield f"| {ARMS[name].label} | {ARMS[name].family} | {cells} |"
            yield ""


def _mean(row: Mapping[str, Mapping[str, float | None]]) -> float:
    values = [estimate["value"] for estimate in row.values()]
    return sum(-1.0 if v is None else v for v in values) / len(values)


def _cell(estimate: Mapping[str, float | None]) -> str:
    if estimate["value"] is None:
        return "not finite"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


class _Printed:
    """Says on stdout how far a run is."""

    def training(self, title: str, rounds: int, done: int) -> None:
        """One line a training."""
        print(f"{title}: {done} of {rounds} rounds done", flush=True)

    def round(self, summary: RoundSummary) -> None:
        """Nothing."""

    def judging(self, title: str) -> None:
        """One line an evaluation."""
        print(f"judging: {title}", flush=True)


def run(name: str, data: Path | None, out: Path, chosen: Sequence[str]) -> tuple[Study, Results]:
    """Run (or go on with) these learners on the study of that name."""
    study = with_learners(studies.find(name), chosen)
    folder = RunDir.open(out) if (out / "study.toml").exists() else RunDir.create(out, study.to_toml())
    loaded = federation.load(study, data)
    command = f"python -m clinimeta.simulations.benchmarks.learners {name}"
    results = Run(study, folder, loaded, BatchedEngine(), _Printed(), command).execute()
    return study, results


def main() -> None:
    """Run, write the CSV, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=studies.names())
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    study, results = run(chosen.study, chosen.data, chosen.out, chosen.arms)
    values = json.loads(results.to_json())
    write_csv(RESULTS / f"{study.name}.csv", values, results.command, keep=set(chosen.arms) != set(ARMS))
    print("\n".join(ranked(study, values)))


if __name__ == "__main__":
    main()
