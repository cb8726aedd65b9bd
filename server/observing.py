"""What a round loop tells whoever listens, while it trains: plain values, in the order in which they happen.

Nobody listens by default (`Quiet`), and nothing depends on what a listener does: it gives no answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from clinimeta.common.errors import AttemptError, ClinimetaError
from clinimeta.common.plan import Plan
from clinimeta.common.records import Order, Reply
from clinimeta.common.secagg.coordinator import Outcome
from clinimeta.common.secagg.protocol import Trip
from clinimeta.server.flow import Failure, Round
from clinimeta.server.training import RoundSummary


@dataclass(frozen=True, slots=True)
class TrainingBegun:
    """A training begins, or goes on, after round `after`; `name` is that for secure aggregation."""

    training: str
    name: str
    plan: Plan
    after: int


@dataclass(frozen=True, slots=True)
class RoundBegun:
    """A round begins, over these hospitals."""

    round: int
    cohort: Sequence[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """Orders went out; `bytes_down` says how large each was. Once more for one that was lost on its way."""

    orders: Mapping[str, Order]
    bytes_down: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Arrived:
    """Answers came in, to these orders; not judged yet."""

    orders: Mapping[str, Order]
    replies: Mapping[str, Reply | Failure]
    bytes_up: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing came to these orders before the deadline."""

    orders: Mapping[str, Order]


@dataclass(frozen=True, slots=True)
class TripBegun:
    """Requests of secure aggregation go out: each hospital's one or two phases begin."""

    trip: Trip


@dataclass(frozen=True, slots=True)
class TripEnded:
    """All answers to a trip that will come are there: its phases end."""

    trip: Trip


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt of secure aggregation was opened, or given up."""

    round: int
    outcome: Outcome | AttemptError


@dataclass(frozen=True, slots=True)
class Judged:
    """A round's answers were checked and put together: who counts, who was refused why, who was silent."""

    number: int
    round: Round


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round is done; its checkpoint is written next."""

    summary: RoundSummary


@dataclass(frozen=True, slots=True)
class Ended:
    """The training ended early: too few hospitals, or something that trying again would not mend."""

    error: ClinimetaError


News: TypeAlias = (
    TrainingBegun
    | RoundBegun
    | Asked
    | Arrived
    | Silent
    | TripBegun
    | TripEnded
    | AttemptEnded
    | Judged
    | RoundEnded
    | Ended
)


@runtime_checkable
class Observer(Protocol):
    """Whoever listens to a round loop."""

    def tell(self, news: News) -> None:
        """Take a piece of news; never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nobody listens."""

    def tell(self, news: News) -> None:
        """Do nothing."""


QUIET = Quiet()
