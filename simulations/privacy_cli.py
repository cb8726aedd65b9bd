"""`clinimeta privacy`: what a promise to the patients would cost, before anything is trained."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from clinimeta.common.errors import StudyError, UserError

if TYPE_CHECKING:
    from clinimeta.common.plan import Plan
    from clinimeta.common.study import Arm, Study

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
RANKS = (1, 4)
"""Of the low-rank changes that are tried."""


@app.callback()
def privacy() -> None:
    """Weigh privacy against learning. Example: clinimeta privacy plan default --epsilon 4 --delta 1e-6."""


@app.command("plan")
def privacy_plan(
    study: Annotated[str, typer.Argument(help="A built-in study or a study file (TOML).")],
    epsilon: Annotated[float, typer.Option(help="How much may be learned about any one patient.")] = 8.0,
    delta: Annotated[float, typer.Option(help="With what probability more may be learned.")] = 1e-6,
    arm: Annotated[str, typer.Option(help="An arm of the study (default: the primary one).")] = "",
    hospitals: Annotated[
        int | None,
        typer.Option(min=1, help="Hospitals that answer a round (default: the study's cohort_size)."),
    ] = None,
    tasks_a_patient: Annotated[
        int | None,
        typer.Option(min=1, help="Tasks a round that may know of a patient (default: the study's, or 1)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Say what noise a promise to each patient takes, whether anything can be learned, and what would help.

    Every round counts in full: who is asked is no secret, so that being left out protects nobody.

    Example:
        clinimeta privacy plan default --epsilon 4 --delta 1e-6
    """
    # Imported here, so that --help does not wait for torch.
    from clinimeta.common.privacy.promise import Promise
    from clinimeta.common.privacy.utility import Setting, expected_utility, in_words
    from clinimeta.simulations import studies

    found = studies.find(study)
    chosen = found.arm(arm or found.primary)
    if chosen.trained_by:
        chosen = found.arm(chosen.trained_by)
    if chosen.training.rounds == 0:
        raise StudyError(
            f"arm '{chosen.name}' is not trained together",
            found="rounds = 0",
            expected="an arm whose hospitals send something",
            remedy="name another with --arm",
        )
    limit = tasks_a_patient or chosen.episodes.tasks_a_patient or 1
    plan = _bounded(found, chosen, limit)
    try:
        promise = Promise(epsilon, delta, tasks_a_patient=limit)
    except ValueError as error:
        raise UserError(
            "this is not a promise that can be kept",
            where="--epsilon" if "epsilon" in str(error) else "--delta",
            found=str(error),
            expected="an epsilon over 0 and a delta between 0 and 1",
            remedy="for example --epsilon 4 --delta 1e-6",
        ) from None
    asked = hospitals or _hospitals(found, chosen)
    numbers, smaller = _sizes(plan)
    setting = Setting(chosen.training.rounds, asked * chosen.episodes.tasks, numbers)
    utility = expected_utility(promise, setting, smaller)
    if as_json:
        values = {"study": found.name, "arm": chosen.name, "hospitals": asked, **asdict(utility)}
        typer.echo(json.dumps(values, indent=1))
        return
    typer.echo(f"study            {found.name}, arm '{chosen.name}', {asked} hospitals a round")
    typer.echo(in_words(utility))
    if not found.table.patient:
        typer.echo("\nnote: the study has no `patient` column, so that each row is promised this for itself")
    if not chosen.episodes.tasks_a_patient:
        typer.echo(f"\nto keep it, the study needs tasks_a_patient = {limit} in [episodes]")


def _bounded(study: "Study", arm: "Arm", tasks_a_patient: int) -> "Plan":
    """The arm's plan as it would be with the bound.

    Raises:
        StudyError: even then nothing could be promised to a patient.
    """
    episodes = arm.episodes.model_copy(update={"tasks_a_patient": tasks_a_patient})
    plan = study.plan(arm.model_copy(update={"episodes": episodes}), study.seeds[0])
    reasons = plan.unpromised()
    if reasons:
        raise StudyError(
            f"arm '{arm.name}' cannot promise a patient anything",
            where=f"study '{study.name}'",
            found="; ".join(reasons),
            remedy="change that, or name another arm with --arm",
        )
    return plan


def _hospitals(study: "Study", arm: "Arm") -> int:
    """How many answer a round, as far as the study says.

    Raises:
        UserError: it asks all, however many there are.
    """
    if arm.training.cohort_size:
        return arm.training.cohort_size
    raise UserError(
        "the study does not say how many hospitals answer a round",
        where=f"study '{study.name}', arm '{arm.name}'",
        found="cohort_size = 0 (all of them)",
        remedy="add --hospitals NUMBER",
    )


def _sizes(plan: "Plan") -> tuple[int, dict[str, int]]:
    """How many numbers learn, and how many would with less."""
    from clinimeta.common.rng import generator

    params = plan.learner().init(generator("template"))
    others: dict[str, dict[str, object]] = {
        'the head only (trainable = "head")': {"trainable": "head", "rank": 0},
    }
    for rank in RANKS:
        words = f'a change of rank {rank} (trainable = "low_rank", rank = {rank})'
        others[words] = {"trainable": "low_rank", "rank": rank}
    smaller = {}
    for what, changes in others.items():
        try:
            smaller[what] = plan.model_copy(update=changes).subspace().size(params)
        except StudyError:
            continue  # this learner has no head
    return plan.subspace().size(params), smaller
