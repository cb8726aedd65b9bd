"""All parts in the order in which a round will use them: the executable specification of a private sum.

Approve, reserve, draw, differentiate, project, clip, scale and round, add a share of the noise; add up over
the sites that are left; divide by the agreed number of tasks, never by one that was counted.
"""

import hashlib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from clinimeta.client.budget import Allowance, Answer, Budget
from clinimeta.client.meta_gradients import draw
from clinimeta.client.site import Site
from clinimeta.common.algorithms.engine import engine
from clinimeta.common.errors import BudgetSpentError
from clinimeta.common.params import norm
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.clipping import clipped_sum, with_rounding
from clinimeta.common.privacy.discrete_gaussian import Keystream, discrete_gaussian, subkey
from clinimeta.common.privacy.noise import Noise
from clinimeta.common.privacy.promise import Promise
from clinimeta.common.records import MetaGradientOrder
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.table import Table
from clinimeta.common.typing import Params
from clinimeta.simulations import federation, studies

SITES, SURVIVORS, ROUNDS = 8, 6, 3
BOUND, SCALE = 0.5, 2.0**20
PROMISE = Promise(8.0, 1e-6)


@cache
def hospitals() -> Mapping[str, Site]:
    return federation.load(studies.find("default"), None).sites


def the_plan() -> Plan:
    study = studies.find("default")
    arm = study.arm("maml")
    episodes = arm.episodes.model_copy(update={"tasks_a_patient": PROMISE.tasks_a_patient})
    training = arm.training.model_copy(update={"trainable": "head"})
    return study.plan(arm.model_copy(update={"episodes": episodes, "training": training}), 0)


def clipped_of(plan: Plan, order: MetaGradientOrder, site: str, table: Table) -> Params:
    batch = stack(draw(plan, order, site, table, 0))
    tasks = engine(plan.learner()).task_gradients(order.params, batch).gradients
    return clipped_sum(plan.subspace().project(tasks), BOUND)


def flat(params: Params) -> np.ndarray:
    return np.asarray(torch.cat([params[n].double().flatten() for n in sorted(params)]))


def test_a_private_round_from_promise_to_mean(tmp_path: Path) -> None:
    plan = the_plan()
    assert plan.unpromised() == ()
    params = plan.learner().init(generator("init", plan.seed))
    size = plan.subspace().size(params)
    noise = Noise(
        PROMISE.noise_multiplier(ROUNDS),
        with_rounding(PROMISE.sensitivity(BOUND), size, SCALE),
        SCALE,
        survivors=SURVIVORS,
    )
    tables = {name: site.table(plan.table) for name, site in hospitals().items()}
    names = sorted(tables)[:SITES]
    allowance = Allowance(PROMISE.epsilon, PROMISE.delta)
    budgets = {n: Budget.create(tmp_path / n / "private" / "budget.sqlite", allowance) for n in names}
    errors = []
    for number in range(1, ROUNDS + 2):
        order = MetaGradientOrder("", "run", number, plan.canonical(), params)
        content = hashlib.sha256(order.plan + flat(params).tobytes()).hexdigest()
        total, exact = np.zeros(size, dtype=np.int64), np.zeros(size)
        for name in names[: SURVIVORS + 1]:  # one site is lost
            answer = Answer(plan.digest, "run", number, 1, content, noise.multiplier, noise.sensitivity)
            if number > ROUNDS:
                with pytest.raises(BudgetSpentError):
                    budgets[name].reserve(answer, allowance)
                continue
            key = budgets[name].reserve(answer, allowance).key
            mine = clipped_of(plan, order, name, tables[name])
            assert norm(mine) <= plan.episodes.tasks * BOUND
            rounding = Keystream(subkey(key, "rounding")).words(size) * 2.0**-64
            total += np.floor(SCALE * flat(mine) + rounding).astype(np.int64)
            total += discrete_gaussian(subkey(key, "noise"), noise.sigma, size)
            exact += flat(mine)
        if number <= ROUNDS:
            errors.append((total / SCALE - exact) / (SURVIVORS * plan.episodes.tasks))
    expected = noise.actual(SURVIVORS + 1) * noise.sensitivity / (SURVIVORS * plan.episodes.tasks)
    assert np.std(errors) == pytest.approx(expected, rel=4 / math.sqrt(2 * size * ROUNDS))
    assert budgets[names[0]].spent() == pytest.approx(PROMISE.epsilon, rel=1e-6)


def test_one_patient_less_moves_a_sites_sum_by_the_sensitivity_at_most() -> None:
    """The promise's premise, on the real path from a table to a sum."""
    plan = the_plan()
    order = MetaGradientOrder("", "run", 1, plan.canonical(), plan.learner().init(generator("init", 0)))
    site = hospitals()["hospital-01"]
    table = site.table(plan.table)
    whole = flat(clipped_of(plan, order, site.name, table))
    moved = []
    for patient in table.patients.unique().tolist()[:12]:
        less = table.take(torch.nonzero(table.patients != patient).squeeze(-1))
        less = Table(less.rows, torch.unique(less.patients, return_inverse=True)[1], less.test)
        moved.append(float(np.linalg.norm(flat(clipped_of(plan, order, site.name, less)) - whole)))
    assert max(moved) <= PROMISE.sensitivity(BOUND) * (1 + 1e-9)
    assert max(moved) > 0
