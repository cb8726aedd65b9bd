"""The coordinator behind Flower: a ServerApp that drives the Grid through the rounds of one training."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol, runtime_checkable

import structlog
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from clinimeta.common.params import norm
from clinimeta.common.records import Introduction
from clinimeta.common.secagg.identity import Roster
from clinimeta.common.study import Plan, Training
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Limits
from clinimeta.server.cohort import sample_cohort
from clinimeta.server.flow import Nonce, Round, calibration_round, meta_round
from clinimeta.server.link import Clock, Link, Traffic, WallClock, quorum_of
from clinimeta.server.protected import MaskedRounds, quantised_round
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary, TrainingState, begin, step

log = structlog.get_logger()


def fresh_nonce() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Job:
    """One training to be done: under which name, by which plan and settings, kept where.

    `sites` is how many to wait for at the start. `calibrate` is the plan whose
    temperatures the sites are asked for at the end.
    `curve` scores the meta-parameters after a round (at hospitals that do not train); `notify` hears of
    every round. `roster` has the sites' keys, for secure aggregation.
    `noise_seed` is for simulations, whose noise must repeat itself.
    """

    name: str
    plan: Plan
    training: Training
    run_dir: RunDir
    sites: int = 1
    calibrate: Plan | None = None
    curve: Callable[[int, Params], Mapping[str, float]] = field(default=lambda _round, _params: {})
    notify: Callable[[RoundSummary], None] = field(default=lambda _summary: None)
    roster: Roster | None = None
    noise_seed: bytes | None = None


@dataclass(slots=True)
class Outcome:
    """What a training came to; filled in when the ServerApp is done."""

    state: TrainingState | None = None
    introductions: Mapping[str, Introduction] = field(default_factory=dict)
    temperatures: Mapping[int, float] = field(default_factory=dict)


@runtime_checkable
class Hospitals(Protocol):
    """Whom a training asks: sites behind Flower's Grid, or a simulation of them all at once."""

    @property
    def sites(self) -> Sequence[str]:
        """Their names, sorted."""
        ...

    @property
    def traffic(self) -> Traffic:
        """Payload bytes so far."""
        ...

    def meta_gradient(self, number: int, params: Params, cohort: Sequence[str]) -> Round:
        """Round `number`: the cohort's weighted mean meta-gradient.

        Raises:
            QuorumError: too few of them answered usably.
        """
        ...

    def temperatures(self, plan: Plan, params: Params) -> Mapping[int, float]:
        """How sure the adapted learner may be: size of support set -> best temperature."""
        ...


@dataclass(slots=True)
class OverTheGrid:
    """Hospitals behind Flower's Grid; under secure aggregation a round's messages carry the next one's."""

    job: Job
    link: Link
    nonce: Nonce
    masked: MaskedRounds | None = None

    @property
    def sites(self) -> Sequence[str]:
        """Those that introduced themselves."""
        return self.link.sites

    @property
    def traffic(self) -> Traffic:
        """What the link counted."""
        return self.link.traffic

    def meta_gradient(self, number: int, params: Params, cohort: Sequence[str]) -> Round:
        """Ask until the quorum is there (`flow.meta_round`)."""
        training, plan = self.job.training, self.job.plan
        if plan.protection.answers == "masked":
            return self.link.converse(self._masked().round(number, params, cohort))
        quorum = quorum_of(training.quorum, len(cohort))
        if plan.protection.answers == "quantised":
            return self.link.converse(
                quantised_round(
                    self.job.name,
                    number,
                    plan,
                    params,
                    cohort,
                    quorum=quorum,
                    attempts=training.attempts,
                    limits=limits(self.job),
                    nonce=self.nonce,
                    noise_seed=self.job.noise_seed,
                )
            )
        return self.link.converse(
            meta_round(
                self.job.name,
                number,
                plan.canonical(),
                params,
                cohort,
                quorum=quorum,
                attempts=training.attempts,
                limits=limits(self.job),
                nonce=self.nonce,
                like=plan.subspace().at(params),
            )
        )

    def _masked(self) -> MaskedRounds:
        if self.masked is None:
            assert self.job.roster is not None, "whoever starts a masked training gives the roster"
            self.masked = MaskedRounds(
                self.job.name,
                self.job.plan,
                self.job.roster,
                date.today,
                self.job.training.rounds,
                self.job.training.attempts,
                self.nonce,
                drawn=0 < self.job.training.cohort_size < len(self.sites),
            )
        return self.masked

    def temperatures(self, plan: Plan, params: Params) -> Mapping[int, float]:
        """Ask all once (`flow.calibration_round`)."""
        flow = calibration_round(self.job.name, plan.canonical(), params, self.sites, nonce=self.nonce)
        return self.link.converse(flow)


def server_app(
    job: Job,
    outcome: Outcome,
    *,
    clock: Clock | None = None,
    poll_s: float = 3.0,
    nonce: Nonce = fresh_nonce,
) -> ServerApp:
    """A ServerApp that does `job`, resuming from its newest checkpoint, and fills in `outcome`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 (Flower's signature)
        link = Link(grid, clock or WallClock(), deadline_s=job.training.deadline_s, poll_s=poll_s)
        outcome.introductions = link.introduce(nonce, expected=job.sites)
        conduct(job, outcome, OverTheGrid(job, link, nonce))

    return app


def conduct(job: Job, outcome: Outcome, hospitals: Hospitals) -> None:
    """The whole of a job: all rounds that are still to do, then the temperatures."""
    outcome.state = train(job, hospitals)
    if job.calibrate and not job.plan.protection.noise_multiplier:  # temperatures would need noise, too
        outcome.temperatures = hospitals.temperatures(job.calibrate, outcome.state.params)


def train(job: Job, hospitals: Hospitals) -> TrainingState:
    """All rounds that are still to do; a checkpoint after each.

    Raises:
        QuorumError: a round's quorum was not reached.
        NumericalError: the outer step left the finite numbers.
        RunDirError: a checkpoint is damaged or foreign.
    """
    digest, optimizer, subspace = job.plan.digest, job.training.outer.build(), job.plan.subspace()
    state = job.run_dir.latest(job.name, digest)
    if state is None:
        state = begin(job.plan.learner(), optimizer, job.plan.seed, subspace)
    job.run_dir.forget_rounds_after(job.name, state.round)
    while state.round < job.training.rounds:
        started, before = time.monotonic(), (hospitals.traffic.down, hospitals.traffic.up)
        cohort = sample_cohort(hospitals.sites, job.training.cohort_size, job.plan.seed, state.round + 1)
        done = hospitals.meta_gradient(state.round + 1, state.params, cohort)
        gradient = done.aggregate.gradient
        assert gradient is not None, "a round that reached its quorum has a gradient"
        state = step(state, gradient, optimizer, subspace)
        summary = RoundSummary(
            training=job.name,
            arm=job.plan.arm,
            round=state.round,
            cohort=len(cohort),
            accepted=len(done.aggregate.accepted),
            refused=done.aggregate.refused,
            silent=done.silent,
            metrics={name: mean.value for name, mean in done.aggregate.metrics.items()},
            gradient_norm=norm(gradient),
            bytes_down=hospitals.traffic.down - before[0],
            bytes_up=hospitals.traffic.up - before[1],
            seconds=time.monotonic() - started,
            curve=job.curve(state.round, state.params),
        )
        _log(summary, done)
        job.run_dir.append_round(summary)  # before the checkpoint: a resumed run drops it, never misses it
        job.run_dir.checkpoint(job.name, state, digest)
        job.notify(summary)
    return state


def limits(job: Job) -> Limits:
    """No site has more tasks than the plan draws, and none has more rows than there are people nearby."""
    heaviest = job.plan.episodes.tasks if job.plan.weighting == "tasks" else 10_000_000
    return Limits(job.training.max_norm, job.training.max_norm_ratio, heaviest)


def _log(summary: RoundSummary, done: Round) -> None:
    if done.silent or done.aggregate.refused:
        log.warning(
            "sites missing from a round",
            training=summary.training,
            round=summary.round,
            silent=list(done.silent),
            refused=dict(done.aggregate.refused),
        )
