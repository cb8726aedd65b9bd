"""The chronicle of an experiment: a round loop's news as rows, for a console in another process.

Only what the coordinator knows anyway is written down: counts, times, sizes, and metrics as they came. A
write that fails is logged, and the training goes on without it. A round that is done again replaces its rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from clinimeta.common.errors import ClinimetaError, QuorumError
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.accounting import gaussian_epsilon
from clinimeta.common.records import (
    MaskingOrder,
    MetaGradientOrder,
    Order,
    QuantisedOrder,
    Refusal,
)
from clinimeta.server import enrolment
from clinimeta.server.chronicle_page import Page, Row, as_json
from clinimeta.server.database import Database
from clinimeta.server.flow import Failure, why_not
from clinimeta.server.masked_attempts import Attempts
from clinimeta.server.observing import (
    Arrived,
    Asked,
    AttemptEnded,
    Ended,
    Judged,
    News,
    RoundBegun,
    RoundEnded,
    Silent,
    TrainingBegun,
    TripBegun,
    TripEnded,
)
from clinimeta.server.reasons import SILENT, reason

log = structlog.get_logger()

LONGEST_WHY = 2000


@dataclass(slots=True)
class Chronicle:
    """An observer that writes what it hears of one experiment into the coordinator's database."""

    database: Database
    experiment: str
    clock: Callable[[], datetime] = enrolment.now
    _training: str = ""
    _name: str = ""
    _plan: Plan | None = None
    _nonces: dict[tuple[int, str], tuple[str, int]] = field(default_factory=dict)
    _sent: dict[str, datetime] = field(default_factory=dict)
    _attempts: Attempts = field(default_factory=Attempts)
    _failing: bool = False

    def tell(self, news: News) -> None:
        """Write a piece of news; where that fails, say so once until it works again."""
        try:
            with self.database.change() as connection:
                self._write(Page(connection, self.experiment, self.clock()), news)
        except Exception as error:  # whatever it is: no round ends for want of a note about it
            if not self._failing:
                log.warning(
                    "the chronicle cannot be written, and the training goes on without it",
                    experiment=self.experiment,
                    error=type(error).__name__,
                )
            self._failing = True
        else:
            self._failing = False

    def _write(self, page: Page, news: News) -> None:
        match news:
            case TrainingBegun():
                self._training, self._name, self._plan = news.training, news.name, news.plan
                self._nonces, self._sent, self._attempts = {}, {}, Attempts()
                page.forget_rounds_after(news.after)
            case RoundBegun():
                page.begin_round(news.round, self._training, len(news.cohort))
            case Asked():
                self._ask(page, news)
            case Arrived():
                self._arrive(page, news)
            case Silent():
                orders = {s: o for s, o in news.orders.items() if not isinstance(o, MaskingOrder)}
                noted = [self._about(site, order) for site, order in orders.items()]
                page.note([row for row in noted if row], "silent", *reason(SILENT))
            case TripBegun():
                for attempt, phase, sites in self._attempts.begin(news.trip, page.at):
                    page.attempt(attempt)
                    if phase == "advert":
                        page.ask([_row(attempt.key.round, attempt.number, site) for site in sites])
                    if phase == "unmask" and self._promises:
                        page.open(attempt.key.round, attempt.key.run)
            case TripEnded():
                for attempt in self._attempts.end(news.trip, page.at):
                    page.attempt(attempt)
            case AttemptEnded():
                self._end_attempt(page, news)
            case Judged():
                self._judge(page, news)
            case RoundEnded():
                epsilon = self._epsilon(page.opened()) if self._promises else None
                page.end_round(news.summary, epsilon)
                self._attempts.forget(news.summary.round)
                self._nonces = {k: v for k, v in self._nonces.items() if k[0] > news.summary.round}
            case Ended():
                if isinstance(news.error, QuorumError) and not self._is_masked:
                    self._refuse(page, news.error.round_number, news.error.missing)
                page.close(_why(news.error))

    @property
    def _is_masked(self) -> bool:
        return self._plan is not None and self._plan.protection.answers == "masked"

    @property
    def _promises(self) -> bool:
        return self._plan is not None and self._plan.protection.epsilon > 0

    def _epsilon(self, opened: int) -> float | None:
        """What the noisy sums that were seen have cost each patient together."""
        assert self._plan is not None
        protection = self._plan.protection
        if not opened or not protection.noise_multiplier:
            return None
        return gaussian_epsilon(math.sqrt(opened) / protection.noise_multiplier, protection.delta)

    def _ask(self, page: Page, news: Asked) -> None:
        rows = []
        for site, order in news.orders.items():
            if isinstance(order, MetaGradientOrder | QuantisedOrder):
                nonce, attempt = self._nonces.get((order.round, site), ("", 0))
                if nonce != order.nonce:  # the same one again was lost on its way
                    self._nonces[order.round, site] = (order.nonce, attempt + 1)
            if row := self._about(site, order):
                rows.append(row | {"bytes_down": news.bytes_down[site]})
                self._sent.setdefault(order.nonce, page.now)
        page.ask(rows)

    def _arrive(self, page: Page, news: Arrived) -> None:
        come: dict[tuple[str, str, str], list[Row]] = {}
        for site, order in news.orders.items():
            if (row := self._about(site, order)) is None:
                continue
            sent, reply = self._sent.pop(order.nonce, page.now), news.replies[site]
            row["bytes_up"] = news.bytes_up[site]
            if isinstance(order, MaskingOrder) and not order.params:
                page.ask([row])  # bytes only
                continue
            row["seconds"] = (page.now - sent).total_seconds()
            if isinstance(reply, Failure | Refusal):
                to = ("refused", *reason(why_not(reply)))
            else:  # what goes out with the model comes back as the masked answer
                to = ("masked" if isinstance(order, MaskingOrder) else "adapted", "", "")
            come.setdefault(to, []).append(row)
        for to, rows in come.items():
            page.note(rows, *to)

    def _about(self, site: str, order: Order) -> Row | None:
        """Which row an order belongs to; None for those that are no part of a round."""
        if isinstance(order, MaskingOrder):
            attempt = self._attempts.newest(order.round)
            return None if attempt is None else _row(order.round, attempt.number, site)
        if isinstance(order, MetaGradientOrder | QuantisedOrder):
            return _row(order.round, self._nonces.get((order.round, site), ("", 1))[1], site)
        return None

    def _newest(self, number: int, site: str) -> Row:
        """The row of a hospital's last answer in a round."""
        if (attempt := self._attempts.newest(number)) is not None:
            return _row(number, attempt.number, site)
        return _row(number, self._nonces.get((number, site), ("", 1))[1], site)

    def _end_attempt(self, page: Page, news: AttemptEnded) -> None:
        for attempt in self._attempts.close(news.round, news.outcome, page.at):
            page.attempt(attempt)
        counted = getattr(news.outcome, "survivors", ())
        for site, (phase, why) in news.outcome.dropped.items():
            if site not in counted:
                code, sentence = reason(why)
                page.note([self._newest(news.round, site)], "dropped", code, f"{phase}: {sentence}")

    def _judge(self, page: Page, news: Judged) -> None:
        aggregate = news.round.aggregate
        measured = {site: as_json(metrics) for site, metrics in aggregate.by_site.items()}
        counted = [
            self._newest(news.number, site) | {"metrics": measured.get(site, "")}
            for site in aggregate.accepted
        ]
        page.note(counted, "received")
        if not self._is_masked:  # there, the attempt's end has said so
            self._refuse(page, news.number, aggregate.refused)
            silent = [self._newest(news.number, site) for site in news.round.silent]
            page.note(silent, "silent", *reason(SILENT))
            if self._promises:
                page.open(news.number, "")
        page.accept(news.number, len(aggregate.accepted))

    def _refuse(self, page: Page, number: int, refused: Mapping[str, str]) -> None:
        for site, why in refused.items():
            row = self._newest(number, site)
            page.note([row], "silent" if why == SILENT else "refused", *reason(why))


def _why(error: ClinimetaError) -> str:
    """What ended a training; who was missing and why is with the answers, in words of ours only."""
    if isinstance(error, QuorumError):
        return f"round {error.round_number}: {error.accepted} usable answers, {error.quorum} needed"
    return str(error)[:LONGEST_WHY]


def _row(number: int, attempt: int, site: str) -> Row:
    return {"round": number, "attempt": attempt, "site": site}
