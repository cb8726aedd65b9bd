"""What the sites of a round agree to before anything else; its digest is in every signature and key."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clinimeta.common.errors import RecordError
from clinimeta.common.secagg.packing import decode, encode
from clinimeta.common.secagg.suite import SUITES, Suite

THRESHOLDS: Mapping[str, Callable[[int], int]] = {"two_thirds": lambda n: 2 * n // 3 + 1}
"""Rule, as the terms have it -> how many of n share holders it takes to open a share.

`two_thirds` is Bonawitz et al. (CCS 2017), section 6.2: with up to a third of the sites colluding with an
active coordinator, no secret can be opened twice, once as a survivor's and once as a drop-out's.
"""

MAX_SITES = 10_000


@dataclass(frozen=True, slots=True)
class RoundKey:
    """Which attempt of which round of which run. Keys and answers belong to exactly one."""

    run: str
    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Column:
    """One more number that every site adds to its vector, under a name and with a bound of its own."""

    name: str
    bound: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one attempt of one round.

    Args:
        suite: number in `SUITES`.
        run, round, attempt: which conversation this is.
        dim: coordinates of a site's vector, the columns apart.
        bound: the largest absolute value of a coordinate of one site's vector.
        columns: numbers that are added up beside the vector (task counts, sums of metrics).
        n_max: the most sites that may take part; it sets the scale of the quantiser.
        min_cohort: the fewest sites whose sum may be opened.
        threshold: rule in `THRESHOLDS`.
        degree: how many neighbours share masks with a site (even), or 0 for all.
        roster_digest: `Roster.digest` of the sites' roster.
        plan_digest: SHA-256 of the plan (or study) that the sites act on.
        public: names of what leaves a site in clear beside the masked vector, in order.

    Raises:
        RecordError: a value out of its range.
    """

    suite: int
    run: str
    round: int
    attempt: int
    dim: int
    bound: float
    columns: tuple[Column, ...]
    n_max: int
    min_cohort: int
    threshold: str
    degree: int
    roster_digest: bytes
    plan_digest: bytes
    public: tuple[str, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        rules = {
            "suite": self.suite in SUITES,
            "run": 0 < len(self.run) <= 200,
            "round": 0 <= self.round < 2**63,
            "attempt": 0 <= self.attempt < 2**63,
            "dim": 0 < self.dim < 2**31,
            "bound": _is_bound(self.bound),
            "columns": len(set(names)) == len(names)
            and all(
                name and _is_bound(column.bound) for name, column in zip(names, self.columns, strict=True)
            ),
            "n_max": 0 < self.n_max <= MAX_SITES,
            "min_cohort": 0 < self.min_cohort <= self.n_max,
            "threshold": self.threshold in THRESHOLDS,
            "degree": self.degree >= 0 and self.degree % 2 == 0,
            "roster_digest": len(self.roster_digest) == 32,
            "plan_digest": len(self.plan_digest) == 32,
            "public": list(self.public) == sorted({*self.public}),
        }
        wrong = [name for name, holds in rules.items() if not holds]
        if wrong:
            raise RecordError(f"terms: out of range: {', '.join(wrong)}")

    @property
    def key(self) -> RoundKey:
        """Which conversation this is."""
        return RoundKey(self.run, self.round, self.attempt)

    @property
    def primitives(self) -> Suite:
        """The suite that the terms name."""
        return SUITES[self.suite]

    @property
    def digest(self) -> bytes:
        """td, 32 bytes: H("terms", the canonical bytes)."""
        return self.primitives.digest("terms", self.to_bytes())

    def needed(self, n: int) -> int:
        """t: how many of n share holders must work together to open a share."""
        return THRESHOLDS[self.threshold](n)

    def to_bytes(self) -> bytes:
        """The one byte string of these terms."""
        return encode(self)

    @staticmethod
    def from_bytes(data: bytes) -> "Terms":
        """The inverse of `to_bytes`; accepts nothing but what it produces.

        Raises:
            RecordError: not terms, out of range, or not in canonical form.
        """
        return decode(Terms, data)


def _is_bound(value: float) -> bool:
    return math.isfinite(value) and 1e-30 <= value <= 1e30
