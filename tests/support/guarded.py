"""A site with a guard whose table may not be touched, and orders for it: for tests of the site's policy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import tomli_w
from parties import roster_of, site_of

from clinimeta.client.approvals import Approvals
from clinimeta.client.budget import Allowance, Budget
from clinimeta.client.guard import Guard
from clinimeta.client.policy import Facts, Policy
from clinimeta.client.site import Site
from clinimeta.common.plan import Plan
from clinimeta.common.records import (
    CalibrationOrder,
    IntroductionOrder,
    MaskingOrder,
    MetaGradientOrder,
    Order,
    QuantisedOrder,
)
from clinimeta.common.rng import generator
from clinimeta.common.study import read_study
from clinimeta.common.tasks.table import Records
from clinimeta.common.typing import Params

TODAY = date(2026, 11, 23)
ME = "bern"
STUDY = {
    "name": "sepsis",
    "primary": "maml",
    "data": {"name": "csv_folder"},
    "model": {"name": "linear"},
    "episodes": {"shots": [1], "query": 2, "tasks": 4, "tasks_a_patient": 1},
    "table": {
        "target": "sick",
        "classes": ["no", "yes"],
        "patient": "person",
        "columns": [{"name": "age", "unit": "years"}, {"name": "crp"}],
    },
    "arms": [{"name": "maml", "algorithm": {"name": "maml", "inner_steps": 1}}],
}
_STUDY = read_study(tomli_w.dumps(STUDY), "study.toml")
BASE = _STUDY.plan(_STUDY.arms[0], seed=7)
LENIENT: Mapping[str, Any] = {"secure_aggregation": "optional", "min_rows": 1, "min_tasks": 1}
"""A policy under which the plan below is answered as soon as it is approved."""


def plan_of(**changes: Any) -> Plan:
    """The plan of a small study; a dictionary for `episodes`, `protection` or `table` changes keys of it."""
    made = {
        key: getattr(BASE, key).model_copy(update=value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return Plan.from_bytes(BASE.model_copy(update=made).canonical())


def masked(**changes: Any) -> Plan:
    return plan_of(protection={"answers": "masked", **changes})


def promising(**changes: Any) -> Plan:
    return masked(**{"epsilon": 4.0, "delta": 1e-6, "noise_multiplier": 20.0, **changes})


def at(day: date, hour: int = 12) -> datetime:
    return datetime.combine(day, time(hour), UTC)


def facts(**changes: Any) -> Facts:
    known = {"today": TODAY, "rows": 100, "answers_today": 0, "order_bytes": 1000}
    return Facts(**{**known, "identity": True, "budget": True, **changes})


def fresh(plan: Plan) -> Params:
    return plan.learner().init(generator("received"))


def orders_for(plan: Plan) -> dict[str, Order]:
    """One order of each kind, and of secure aggregation one for each part of the conversation."""
    data, params = plan.canonical(), fresh(plan)
    return {
        "introduction": IntroductionOrder("nonce"),
        "meta-gradient": MetaGradientOrder("nonce", "run", 1, data, params),
        "quantised": QuantisedOrder("nonce", "run", 1, data, 5, params),
        "masking, first": MaskingOrder("nonce", "run", 1, data, (b"?",), {}),
        "masking, between": MaskingOrder("nonce", "run", 1, b"", (b"?",), {}),
        "masking, with parameters": MaskingOrder("nonce", "run", 1, data, (b"?",), params),
        "calibration": CalibrationOrder("nonce", "run", data, params, (1.0, 2.0)),
    }


class Touched(Exception):  # noqa: N818 (a mark, not an error)
    """The table was looked at."""


class Untouchable(Mapping[str, Sequence[str]]):
    """The cells of a table that raises, once it is armed, as soon as anybody looks at them or counts them."""

    armed = False

    def __getitem__(self, key: str) -> Sequence[str]:
        raise Touched

    def __iter__(self) -> Iterator[str]:
        if self.armed:
            raise Touched
        return iter(())

    def __len__(self) -> int:
        if self.armed:
            raise Touched
        return 0


@dataclass(frozen=True, slots=True)
class Hospital:
    """A folder in which guarded sites keep what their people have decided."""

    folder: Path
    now: list[datetime] = field(default_factory=lambda: [at(TODAY)])

    def approvals(self) -> Approvals:
        return Approvals(self.folder / "approvals", lambda: self.now[0])

    def approve(self, plan: Plan) -> None:
        self.approvals().keep(plan)
        self.approvals().approve(plan.digest, "Dr. Ada Byron", "ethics vote 12/26")

    def guard(self, *, rows: int = 100, answers_today: int = 0, **policy: Any) -> Guard:
        chosen = Policy(**{**LENIENT, **policy})
        return Guard(chosen, self.approvals(), rows, lambda: answers_today, lambda: self.now[0])

    def site(self, guard: Guard, *, identity: bool = True, budget: bool = True) -> Site:
        """One whose table raises `Touched`."""
        cells = Untouchable()
        site = Site(ME, Records("bern.csv", cells), guard=guard)
        if identity:
            site = replace(site, party=site_of(ME, roster_of(("bern", "graz", "lund"))))
        if budget:
            path = self.folder / "budget.sqlite"
            there = path.exists()
            site = replace(
                site, budget=Budget.open(path) if there else Budget.create(path, Allowance(50.0, 1e-5))
            )
        cells.armed = True
        return site
