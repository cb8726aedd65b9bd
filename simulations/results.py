"""What a simulation measured, as plain values: the report, the console and `--json` all read these."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clinimeta.server.training import RoundSummary as RoundSummary


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % bootstrap interval; NaN where nothing could be scored."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """One cell of a table: an arm (or a reference) at a support size, over all hospitals or at one.

    `shots` is "1", "5", ..., "half", "all"; `site` is "" for the figure over all hospitals.
    `sites` counts the hospitals that could be scored (those with too few rows cannot).
    """

    evaluation: str
    arm: str
    shots: str
    score: str
    estimate: Estimate
    sites: int
    site: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The study's question, answered by a paired bootstrap: `difference` is arm minus against."""

    evaluation: str
    arm: str
    against: str
    shots: str
    score: str
    difference: Estimate

    @property
    def verdict(self) -> str:
        """Better, worse, or no difference shown where the interval holds zero."""
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "no difference shown"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the report shows.

    `site_rows` are ranges ("50-99"), never exact counts. `engines`: arm -> how its meta-gradients were
    computed in this process (see `common/algorithms/engine.py`).
    """

    study: str
    scores: tuple[Score, ...]
    answers: tuple[Answer, ...]
    rounds: tuple[RoundSummary, ...]
    arms: Mapping[str, str]
    site_rows: Mapping[str, str]
    unscored: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    command: str
    engines: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The results as JSON; NaN becomes null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
