"""What a promise leaves to learn: noise against signal, before anything is trained.

The noise of a round's mean meta-gradient has, in each coordinate, the standard deviation z Delta / N with N
tasks. Clipped tasks that all agree would give a mean of norm C, which is C / sqrt(d) in each of d
coordinates. Their ratio is the most that can be hoped for: real tasks do not agree.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clinimeta.common.privacy.promise import Promise

Verdict = Literal["useful", "weak", "useless"]
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Setting:
    """What the noise is weighed against: rounds, tasks a round (all sites), coordinates that learn.

    `inflation` is how much larger than necessary the noise is because sites might have dropped out
    (`noise.Noise.inflation`).

    Raises:
        ValueError: a number is not positive.
    """

    rounds: int
    tasks: int
    coordinates: int
    inflation: float = 1.0

    def __post_init__(self) -> None:
        if min(self.rounds, self.tasks, self.coordinates) < 1 or self.inflation < 1:
            raise ValueError(f"rounds, tasks, coordinates and inflation must be 1 or more: {self}")


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change that would help, and the ratio of signal to noise in a round after it."""

    what: str
    ratio: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Utility:
    """Noise and signal in a coordinate of the mean meta-gradient, in units of the clipping bound C.

    `ratio` is signal over noise in one round, `ratio_of_all` in the sum of all rounds.
    """

    promise: Promise
    setting: Setting
    multiplier: float
    noise: float
    signal: float
    ratio: float
    ratio_of_all: float
    verdict: Verdict
    remedies: tuple[Remedy, ...] = field(default=())


def expected_utility(promise: Promise, setting: Setting, smaller: Mapping[str, int] | None = None) -> Utility:
    """Weigh noise against signal; `smaller` names parts that could learn instead -> their coordinates.

    "useful": at least 1 in every round, so that even a single noisy mean points within 45 degrees of where
    the tasks agree to go. "weak": less, but at least 1 over all rounds, so that small outer steps can average
    the noise away. "useless": even the sum of all rounds is more noise than signal.
    """
    multiplier, noise, signal = _weigh(promise, setting)
    ratio = signal / noise
    return Utility(
        promise,
        setting,
        multiplier,
        noise,
        signal,
        ratio,
        ratio * math.sqrt(setting.rounds),
        _verdict(ratio, setting.rounds),
        _remedies(promise, setting, smaller or {}) if ratio < 1 else (),
    )


def in_words(utility: Utility) -> str:
    """The same as plain text, a few lines."""
    promise, setting = utility.promise, utility.setting
    meaning = {
        "useful": "every round points where the tasks agree to go, more or less.",
        "weak": "a single round is mostly noise; small outer steps over all rounds can average it away.",
        "useless": "even all rounds together are more noise than signal. Do not train like this.",
    }
    shared = f", {promise.tasks_a_patient} task{'s' * (promise.tasks_a_patient > 1)} a patient and round"
    lines = [
        f"promise          epsilon {promise.epsilon:g}, delta {promise.delta:g} for each {promise.unit}"
        + (shared if promise.unit == "patient" else ""),
        f"training         {setting.rounds} rounds of {setting.tasks:,} tasks; "
        f"{setting.coordinates:,} numbers learn",
        f"noise multiplier {utility.multiplier:.3g}",
        f"in a coordinate  noise {utility.noise:.2g} C, signal at most {utility.signal:.2g} C "
        "(C: the clipping bound)",
        f"signal / noise   {utility.ratio:.2g} in a round, {utility.ratio_of_all:.2g} over all rounds",
        f"verdict          {utility.verdict}: {meaning[utility.verdict]}",
    ]
    if utility.remedies:
        lines += ["", "what would help, each alone:"]
        lines += [
            f"  {remedy.what}: {remedy.ratio:.2g} a round, {remedy.verdict}" for remedy in utility.remedies
        ]
    return "\n".join(lines)


def _weigh(promise: Promise, setting: Setting) -> tuple[float, float, float]:
    """Noise multiplier, and noise and signal in a coordinate of the mean, in units of C."""
    multiplier = promise.noise_multiplier(setting.rounds)
    noise = multiplier * promise.sensitivity(1.0) * setting.inflation / setting.tasks
    return multiplier, noise, 1 / math.sqrt(setting.coordinates)


def _verdict(ratio: float, rounds: int) -> Verdict:
    if ratio >= 1 - _ROUNDING:
        return "useful"
    return "weak" if ratio * math.sqrt(rounds) >= 1 - _ROUNDING else "useless"


def _remedies(promise: Promise, setting: Setting, smaller: Mapping[str, int]) -> tuple[Remedy, ...]:
    """What it takes, by one number alone, to be useful; and what the named parts would do."""

    def tried(what: str, promise: Promise, **changes: int) -> Remedy:
        rounds = changes.get("rounds", setting.rounds)
        tasks = changes.get("tasks", setting.tasks)
        coordinates = changes.get("coordinates", setting.coordinates)
        _, noise, signal = _weigh(promise, Setting(rounds, tasks, coordinates, setting.inflation))
        return Remedy(what, signal / noise, _verdict(signal / noise, rounds))

    _, noise, signal = _weigh(promise, setting)
    found = [
        tried(f"{name} ({count:,} numbers)", promise, coordinates=count)
        for name, count in smaller.items()
        if count < setting.coordinates
    ]
    few = math.floor(1 / noise**2)
    if few >= 1:
        found.append(tried(f"a model of {few:,} numbers", promise, coordinates=few))
    many = math.ceil(setting.tasks * noise / signal)
    found.append(
        tried(f"{many:,} tasks a round (more hospitals, or more tasks at each)", promise, tasks=many)
    )
    rounds = math.floor(setting.rounds * (signal / noise) ** 2)  # z grows as the root of the rounds
    if rounds >= 1:
        found.append(tried(f"{rounds:,} rounds", promise, rounds=rounds))
    if promise.unit == "patient" and promise.tasks_a_patient > 1:
        once = Promise(promise.epsilon, promise.delta, "patient", 1)
        found.append(tried("1 task a patient and round, if there are still as many tasks", once))
    return tuple(found)
