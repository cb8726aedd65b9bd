"""The coordinator behind Flower: a ServerApp that drives the Grid through the rounds of one training."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Protocol, runtime_checkable

import structlog
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from clinimeta.common.errors import ClinimetaError, QuorumError, StudyError
from clinimeta.common.params import norm
from clinimeta.common.records import Introduction
from clinimeta.common.secagg.identity import Roster
from clinimeta.common.study import Plan, Training
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Aggregate, Limits, blames_parameters
from clinimeta.server.cohort import sample_cohort
from clinimeta.server.flow import Nonce, Round, calibration_round, meta_round
from clinimeta.server.gate import Gate
from clinimeta.server.link import Clock, Link, Traffic, WallClock, quorum_of
from clinimeta.server.observing import (
    QUIET,
    Ended,
    Judged,
    Observer,
    RoundBegun,
    RoundEnded,
    TrainingBegun,
)
from clinimeta.server.protected import MaskedRounds, quantised_round
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary, TrainingState, begin

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
    `noise_seed` is for simulations, whose noise must repeat itself. `masked_as` is another name than `name`
    for secure aggregation, whose sites answer once under a name: each start of a training needs its own.
    `observer` hears of all that happens meanwhile.
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
    masked_as: str = ""
    observer: Observer = QUIET


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
        """Round `number`: the cohort's meta-gradients, combined by the training's rule.

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
        needed = quorum(self.job, len(cohort))
        if plan.protection.answers == "quantised":
            return self.link.converse(
                quantised_round(
                    self.job.name,
                    number,
                    plan,
                    params,
                    cohort,
                    quorum=needed,
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
                quorum=needed,
                attempts=training.attempts,
                limits=limits(self.job),
                nonce=self.nonce,
                like=plan.subspace().at(params),
                rule=training.aggregation,
            )
        )

    def _masked(self) -> MaskedRounds:
        if self.masked is None:
            assert self.job.roster is not None, "whoever starts a masked training gives the roster"
            self.masked = MaskedRounds(
                self.job.masked_as or self.job.name,
                self.job.plan,
                self.job.roster,
                date.today,
                self.job.training.rounds,
                self.job.training.attempts,
                self.nonce,
                drawn=0 < self.job.training.cohort_size < len(self.sites),
                observer=self.job.observer,
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
        link = Link(
            grid,
            clock or WallClock(),
            deadline_s=job.training.deadline_s,
            poll_s=poll_s,
            observer=job.observer,
        )
        outcome.introductions = link.introduce(nonce, expected=job.sites)
        conduct(job, outcome, OverTheGrid(job, link, nonce))

    return app


def conduct(job: Job, outcome: Outcome, hospitals: Hospitals) -> None:
    """The whole of a job: all rounds that are still to do, then the temperatures."""
    try:
        outcome.state = train(job, hospitals)
    except ClinimetaError as error:
        job.observer.tell(Ended(error))
        raise
    if job.calibrate and not job.plan.protection.in_whole_numbers:  # each hospital's losses would be seen
        outcome.temperatures = hospitals.temperatures(job.calibrate, outcome.state.params)


def train(job: Job, hospitals: Hospitals) -> TrainingState:
    """All rounds that are still to do; a checkpoint after each.

    Raises:
        StudyError: a cohort is too small for the training's aggregation rule.
        QuorumError: a round's quorum was not reached.
        NumericalError: the outer step left the finite numbers.
        GateError: the hold-out gate undid more steps than allowed.
        RunDirError: a checkpoint is damaged or foreign.
    """
    digest, optimizer, subspace = job.plan.digest, job.training.outer.build(), job.plan.subspace()
    gate = Gate(job.training.gate)
    state = job.run_dir.latest(job.name, digest)
    if state is None:
        state = begin(job.plan.learner(), optimizer, job.plan.seed, subspace)
    job.run_dir.forget_rounds_after(job.name, state.round)
    job.observer.tell(TrainingBegun(job.name, job.masked_as or job.name, job.plan, state.round))
    while state.round < job.training.rounds:
        started, before = time.monotonic(), (hospitals.traffic.down, hospitals.traffic.up)
        cohort = _cohort(job, hospitals, state.round + 1)
        job.observer.tell(RoundBegun(state.round + 1, cohort))
        done = _ask(job, hospitals, gate, state, cohort)
        gradient = done.aggregate.gradient
        state, why = gate.judge(state, done.aggregate.metrics)
        undone = [why]
        if why:
            state = replace(
                state, round=state.round + 1
            )  # this round's meta-gradient was taken at bad parameters
        else:
            assert gradient is not None, "a round that reached its quorum has a gradient"
            state, why = gate.step(state, gradient, optimizer, subspace)
            undone.append(why)
        if state.round == job.training.rounds and gate.pending(state):
            last = _ask(job, hospitals, gate, state, _cohort(job, hospitals, state.round + 1))
            state, why = gate.judge(state, last.aggregate.metrics)
            undone.append(why)
        undone = [why for why in undone if why]
        summary = RoundSummary(
            training=job.name,
            arm=job.plan.arm,
            round=state.round,
            cohort=len(cohort),
            accepted=len(done.aggregate.accepted),
            refused=done.aggregate.refused,
            silent=done.silent,
            metrics={name: mean.value for name, mean in done.aggregate.metrics.items()},
            gradient_norm=norm(gradient) if gradient is not None else 0.0,
            bytes_down=hospitals.traffic.down - before[0],
            bytes_up=hospitals.traffic.up - before[1],
            seconds=time.monotonic() - started,
            curve=job.curve(state.round, state.params),
            rollbacks=len(undone),
            by_site=done.aggregate.by_site,
        )
        _log(summary, done, undone)
        job.run_dir.append_round(summary)  # before the checkpoint: a resumed run drops it, never misses it
        job.observer.tell(RoundEnded(summary))  # likewise
        job.run_dir.checkpoint(job.name, state, digest)
        job.notify(summary)
    return state


def _cohort(job: Job, hospitals: Hospitals, number: int) -> list[str]:
    """Who is asked in round `number`."""
    cohort = sample_cohort(hospitals.sites, job.training.cohort_size, job.plan.seed, number)
    protection = job.plan.protection
    if protection.answers == "masked" and len(cohort) < protection.min_cohort:
        raise StudyError(
            "the sum over so few hospitals may not be opened",
            where="[protection] min_cohort",
            found=f"{len(cohort)} in a round",
            expected=f"{protection.min_cohort} or more",
            remedy="use more hospitals or a larger cohort_size; a smaller min_cohort hides less",
        )
    rule = job.training.aggregation
    if rule.rule != "mean" and len(cohort) < rule.least_sites:
        raise StudyError(
            f"the rule '{rule.rule}' cannot work with so few hospitals",
            where="[training.aggregation]",
            found=f"{len(cohort)} in a round",
            expected=f"{rule.least_sites} or more",
            remedy="use more hospitals, a larger cohort_size, or another rule",
        )
    return cohort


def _ask(job: Job, hospitals: Hospitals, gate: Gate, state: TrainingState, cohort: Sequence[str]) -> Round:
    """The next round's answers.

    Where too few are usable because the parameters are bad, and the gate can undo the step that led to them,
    that is a round without answers.
    """
    number = state.round + 1
    try:
        done = hospitals.meta_gradient(number, state.params, cohort)
    except QuorumError as error:
        numbers = sum(blames_parameters(reason) for reason in error.missing.values())
        if not gate.pending(state) or error.accepted + numbers < quorum(job, len(cohort)):
            raise
        done = Round(Aggregate(None, 0.0, {}, (), error.missing), silent=())
    job.observer.tell(Judged(number, done))
    return done


def limits(job: Job) -> Limits:
    """No site has more tasks than the plan draws, and none has more rows than there are people nearby."""
    heaviest = job.plan.episodes.tasks if job.plan.weighting == "tasks" else 10_000_000
    return Limits(job.training.max_norm, job.training.max_norm_ratio, heaviest)


def quorum(job: Job, cohort: int) -> int:
    """How many usable answers a round of this cohort needs: a share of it, and as many as the rule needs."""
    return max(quorum_of(job.training.quorum, cohort), job.training.aggregation.least_sites)


def _log(summary: RoundSummary, done: Round, undone: Sequence[str]) -> None:
    for why in undone:
        log.warning("an outer step was undone", training=summary.training, round=summary.round, why=why)
    if done.silent or done.aggregate.refused:
        log.warning(
            "sites missing from a round",
            training=summary.training,
            round=summary.round,
            silent=list(done.silent),
            refused=dict(done.aggregate.refused),
        )
