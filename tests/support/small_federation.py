"""A federation of seven small hospitals and a training of a few rounds, for tests of what bad sites do."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from clinimeta.client import app as client
from clinimeta.client.site import Site
from clinimeta.common.params import scaled
from clinimeta.common.records import MetaGradient, Order, Reply
from clinimeta.common.rng import generator
from clinimeta.common.study import read_study
from clinimeta.common.tasks.table import Records
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.server.training import TrainingState
from clinimeta.simulations.loopback import LoopbackEngine

NAMES = ("bern", "graz", "lund", "oulu", "pisa", "riga", "ulm")
BAD = ("graz", "ulm")
ROUNDS = 6
NAME = "seed0/all/maml"


def hospital(name: str) -> Site:
    x = torch.randn(24, 2, generator=generator("gate", name))
    y = [i % 2 for i in range(24)]
    ages = [f"{float(v) + 2 * label:.3f}" for v, label in zip(x[:, 0], y, strict=True)]
    cells = {"age": ages, "crp": [f"{float(v):.3f}" for v in x[:, 1]], "ill": [str(label) for label in y]}
    return Site(name, Records(f"{name}.csv", cells))


SITES = {name: hospital(name) for name in NAMES}


def job(path: Path, *, model: str = "linear", **training: Any) -> Job:
    path.mkdir(exist_ok=True)
    values = {
        "name": "tiny",
        "primary": "maml",
        "data": {"name": "synthetic"},
        "table": {"target": "ill", "classes": ["0", "1"], "columns": [{"name": "age"}, {"name": "crp"}]},
        "model": {"name": model},
        "episodes": {"shots": [2], "query": 5, "tasks": 4},
        "training": {"rounds": ROUNDS, "outer": {"name": "sgd", "rate": 0.3, "momentum": 0.5}} | training,
        "arms": [{"name": "maml", "algorithm": {"name": "maml", "inner_steps": 1, "first_order": True}}],
    }
    study = read_study(tomli_w.dumps(values), "tiny.toml")
    arm = study.arms[0]
    return Job(NAME, study.plan(arm, 0), arm.training, RunDir(path))


def train(to_do: Job, engine: Any = LoopbackEngine(encode=False)) -> TrainingState:  # noqa: B008 (frozen)
    outcome = Outcome()
    engine(to_do, outcome, SITES)
    assert outcome.state is not None
    return outcome.state


Poison = Callable[..., None]


def poisoner(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Lets the bad sites send their meta-gradient times -`strength` in these rounds, over loopback."""
    honest = client.answer

    def poisoned(*rounds: int, strength: float = 300.0) -> None:
        def answer(site: Site, order: Order, tables: Any = None) -> Reply:
            reply = honest(site, order, tables)
            if isinstance(reply, MetaGradient) and site.name in BAD and reply.round in rounds:
                return replace(reply, gradient=scaled(reply.gradient, -strength))
            return reply

        monkeypatch.setattr(client, "answer", answer)

    return poisoned


def losses(to_do: Job) -> list[float]:
    """The mean query loss of every round; NaN where nobody could report one."""
    return [summary.metrics.get("query_loss", float("nan")) for summary in to_do.run_dir.rounds()]
