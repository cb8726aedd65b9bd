"""What people at a hospital look at and decide: plans, their cost, what was contributed, a model's use here.

Commands of `clinimeta site`, gathered in `site_cli`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinimeta.client import ledger_cli
from clinimeta.client.home_option import HERE, HomeOption, Json, home_of
from clinimeta.common.errors import UserError

if TYPE_CHECKING:
    from clinimeta.client.config import Home
    from clinimeta.common.plan import Plan


def dry_run(
    study: Annotated[Path, typer.Argument(help="The study file (TOML) that the coordinator will run.")],
    home: HomeOption = HERE,
) -> None:
    """Read the table, adapt once, and show exactly what would be sent. Sends nothing.

    Example:
        clinimeta site dry-run study.toml
    """
    from clinimeta.client.dry_run import dry_run as run_dry
    from clinimeta.client.hospital import open_hospital

    for line in run_dry(open_hospital(home_of(home)), plans_in(study)[0]).lines():
        typer.echo(line)


def approve(
    plan: Annotated[str, typer.Argument(help="Its fingerprint, or the first 8 digits or more of it.")] = "",
    study: Annotated[
        Path | None, typer.Option("--study", help="Decide about the plans of this study file (TOML).")
    ] = None,
    by: Annotated[str, typer.Option(help="Who decides: a person's name.")] = "",
    reason: Annotated[str, typer.Option(help="Why; kept beside the decision.")] = "",
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take an approval back, or turn down.")
    ] = False,
    home: HomeOption = HERE,
    as_json: Json = False,
) -> None:
    """Show the plans that wait for a person, or decide about one.

    Examples:
        clinimeta site approve

        clinimeta site approve 3f9a01c2 --by "Dr. Ada Byron"
    """
    from clinimeta.client.approvals import Approvals
    from clinimeta.client.plan_words import describe, diff

    approvals = Approvals(home_of(home).approvals)
    decide, done = (approvals.withdraw, "withdrawn") if withdraw else (approvals.approve, "approved")
    if study is not None:
        for known in plans_in(study):
            approvals.keep(known, None)
            decide(known.digest, by, reason)
            typer.echo(f"{done}: {known.study}, {known.arm} ({known.digest})")
        return
    if plan:
        found = decide(plan, by, reason)
        typer.echo(f"{done}: {found.plan.study} ({found.digest})")
        return
    waiting = approvals.pending()
    if as_json:
        typer.echo(json.dumps([dict(describe(one.plan)) | {"plan": one.digest} for one in waiting], indent=1))
        return
    if not waiting:
        typer.echo("no study waits for an approval")
    for one in waiting:
        for heading, text in describe(one.plan):
            typer.echo(f"{heading}: {text}")
        before = approvals.last_approved(one.plan)
        typer.echo("Compared with the last approved one:" if before else "It is the first of its kind here.")
        for change in diff(before, one.plan) if before else ():
            typer.echo(f"  {change}")
        for line in _refused(home_of(home), one.plan):
            typer.echo(line)
        typer.echo(f"To approve it: clinimeta site approve {one.digest[:12]} --by NAME")
        typer.echo("")


def budget(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Say what each study has cost patients in privacy, and what is left of the hospital's budget.

    Example:
        clinimeta site budget --home site
    """
    from clinimeta.client.hospital import budget_of, policy_of

    found = home_of(home)
    kept = budget_of(found, policy_of(found))
    lifetime = kept.lifetime()
    if kept.within is not None and kept.within.epsilon < lifetime.epsilon:
        lifetime = kept.within  # lowered in the policy since
    studies = sorted({entry.answer.study for entry in kept.history()})
    values = {
        "spent": kept.spent(),
        "lifetime_epsilon": lifetime.epsilon,
        "lifetime_delta": lifetime.delta,
        "studies": {study: kept.spent(study) for study in studies},
    }
    if as_json:
        typer.echo(json.dumps(values, indent=1))
        return
    typer.echo(
        f"all studies: epsilon {kept.spent():.3g} of {lifetime.epsilon:g} (delta {lifetime.delta:g}) is spent"
    )
    for study in studies:
        typer.echo(f"  plan {study[:12]}: epsilon {kept.spent(study):.3g}")


def report(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Say what this hospital has contributed: per study answers, refusals, bytes and privacy.

    Example:
        clinimeta site report --home site
    """
    from dataclasses import asdict

    from clinimeta.client.activity import by_study, refusals
    from clinimeta.client.certificate import in_words

    entries = [entry for _, entry in ledger_cli.entries_of(home_of(home))]
    studies, refused = by_study(entries), refusals(entries)
    if as_json:
        typer.echo(json.dumps({"studies": [asdict(line) for line in studies], "refused": refused}, indent=1))
        return
    if not entries:
        typer.echo("nothing has left this hospital yet")
    for line in studies:
        cost = f", epsilon {line.cost.epsilon:.3g}" if line.cost else ""
        typer.echo(
            f"{line.name}: {line.answers} sums and {line.others} other messages, {line.refused} refused, "
            f"{in_words(line.bytes)}, {line.first[:10]} to {line.last[:10]}{cost}"
        )
    for code, times in refused.items():
        typer.echo(f"refused {times} times: {code}")


def adapt(
    model: Annotated[Path, typer.Argument(help="A model.safetensors, as the coordinator exported it.")],
    predict: Annotated[Path, typer.Option("--predict", help="CSV of the patients to predict.")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")],
    home: HomeOption = HERE,
    keep: Annotated[
        str, typer.Option("--id", help="A column of the new patients to copy beside the predictions.")
    ] = "",
) -> None:
    """Adapt a model to this hospital's own table, and predict new patients. Nothing leaves this machine.

    Example:
        clinimeta site adapt model.safetensors --predict new.csv --out predictions.csv
    """
    from clinimeta.client.local import adapt as adapt_locally
    from clinimeta.client.predictions import write_predictions
    from clinimeta.client.sources.base import configured
    from clinimeta.client.sources.csv_files import read_csv
    from clinimeta.client.sources.mapping import known_columns, translate
    from clinimeta.common.trained_model import read_model

    if out.exists():
        raise UserError("the output file is there already", where=str(out), remedy="choose another")
    found, trained = home_of(home), read_model(model)
    source = configured(found.settings().data, f"{found.path / 'site.toml'}, [data]")
    new = read_csv(predict)
    support = translate(source.read(found.path), source.translation, trained.plan.table)
    adapted = adapt_locally(trained, support, known_columns(new, source.translation, trained.plan.table))
    spread = None if adapted.spread is None else adapted.spread.tolist()
    write_predictions(out, new, trained.plan.table.classes, adapted.probabilities.tolist(), keep, spread)
    for warning in adapted.warnings:
        typer.echo(f"note: {warning}", err=True)
    typer.echo(f"{len(new)} patients predicted in {adapted.seconds:.2f} s: {out}")


def _refused(home: "Home", plan: "Plan") -> list[str]:
    """What the policy would say even to an approved plan, a line each."""
    from clinimeta.client.hospital import open_hospital

    try:
        site = open_hospital(home).site
    except UserError as error:
        return [f"What your policy would refuse cannot be said: {error.what} ({error.where})"]
    assert site.guard is not None
    verdicts = site.guard.would_refuse(plan, identity=site.party is not None, budget=site.budget is not None)
    others = [verdict for verdict in verdicts if verdict.code != "not_approved"]
    if not others:
        return ["Your policy would answer it once it is approved."]
    return ["Your policy would refuse it even then:", *(f"  {one.reason} ({one.code})" for one in others)]


def plans_in(path: Path) -> "list[Plan]":
    """The plans of a study file, each once: what it trains, and what it is judged by.

    Raises:
        UserError: there is no such file, or it is no study.
    """
    from clinimeta.common.study import read_study

    if not path.is_file():
        raise UserError("there is no such study file", where=str(path), remedy="check the path")
    study = read_study(path.read_text(encoding="utf-8"), str(path))
    arms = (study.trained, study.arm(study.primary))
    return list({plan.digest: plan for plan in (study.plan(arm, study.seeds[0]) for arm in arms)}.values())
