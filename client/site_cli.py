"""`clinimeta site ...`: what a hospital's IT, its clinicians and its data-protection officer type."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinimeta.client import ledger_cli
from clinimeta.client.home_option import HERE, HomeOption, Json, home_of
from clinimeta.common.errors import UserError

if TYPE_CHECKING:
    from clinimeta.common.plan import Plan

app = typer.Typer(
    help="Take part as a hospital. Example: clinimeta site init site --coordinator hub.example.org:9443.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    coordinator: Annotated[str, typer.Option(help="HOST:PORT, as the coordinator's operator says.")],
    data: Annotated[str, typer.Option(help="Table of patients (CSV), relative to the folder or absolute.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for this machine only.")] = 9543,
    health_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for monitoring.")] = 9545,
) -> None:
    """Make a hospital's folder: settings, and keys that never leave it.

    Example:
        clinimeta site init site --coordinator hub.example.org:9443 --data patients.csv
    """
    from clinimeta.client.folder import make_home

    _require_address(coordinator)
    home = make_home(folder, address=coordinator, data=data, port=port, health_port=health_port)
    typer.echo(f"made {home.path}: settings in site.toml, keys beside it")
    if not (home.path / data).exists():
        typer.echo(f"note: there is no table yet at {(home.path / data).resolve()}", err=True)
    typer.echo(f"next: clinimeta site enrol --home {home.path} --token-file FILE")


@app.command()
def enrol(
    home: HomeOption = HERE,
    token: Annotated[
        str, typer.Option(help="What the operator gave you; on a shared machine use --token-file.")
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="A file that holds it.")] = None,
) -> None:
    """Send this hospital's public keys to the coordinator. Private keys stay here.

    Example:
        clinimeta site enrol --home site --token-file token.txt
    """
    from clinimeta.client.enrol import enrol as enrol_at
    from clinimeta.client.keys import identity
    from clinimeta.common.secagg.identity import fingerprint

    if bool(token) == bool(token_file):
        raise UserError("one token is needed", remedy="give either --token or --token-file")
    found = home_of(home)
    text = token if token_file is None else _token_in(token_file)
    enrolment, state = enrol_at(found, text)
    own = fingerprint(identity(found, enrolment.site).public)
    typer.echo(f"enrolled at {enrolment.coordinator} as {enrolment.site}: {state}")
    typer.echo(f"fingerprint of this hospital's key: {own} (compare it with the operator by telephone)")
    typer.echo(f"next: clinimeta site check --home {found.path}")


@app.command()
def up(
    home: HomeOption = HERE,
    background: Annotated[
        bool, typer.Option("--background", help="Go on in the background; its log is a file in the folder.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for it to be ready.")] = 60.0,
) -> None:
    """Run the hospital's daemon: it answers the coordinator as far as this hospital's policy allows.

    Stays in the foreground until SIGTERM or Ctrl-C; --background returns when it is ready.

    Example:
        clinimeta site up --home site --background
    """
    from clinimeta.common.running import in_background

    found = home_of(home)
    if background:
        health = f"http://127.0.0.1:{found.settings().local.health_port}/readyz"
        command = ["site", "up", "--home", str(found.path)]
        pid = in_background(command, found.lock, found.path / "site.log", health, wait)
        typer.echo(f"ready: process {pid}, log in {found.path / 'site.log'}")
        return
    from clinimeta.client.daemon import run
    from clinimeta.common.logs import log_to_stderr

    log_to_stderr()
    run(found)


@app.command()
def down(home: HomeOption = HERE) -> None:
    """Stop the daemon; what it is answering is answered first, if that is quick.

    Example:
        clinimeta site down --home site
    """
    from clinimeta.common.running import stop

    typer.echo("stopped" if stop(home_of(home).lock, patience_s=40.0) else "it was not running")


@app.command()
def status(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Say whether the daemon runs, and how the coordinator sees this hospital.

    Example:
        clinimeta site status --home site
    """
    from clinimeta.client.enrol import Enrolment, standing
    from clinimeta.common.running import running

    found = home_of(home)
    Enrolment.of(found)  # or it says how to enrol
    pid = running(found.lock)
    at = standing(found)
    if as_json:
        typer.echo(json.dumps({"pid": pid, "state": at.state, "clock_ahead_s": round(at.ahead_s, 1)}))
        return
    typer.echo(f"daemon: {f'process {pid}' if pid else 'does not run'}; at the coordinator: {at.state}")


@app.command()
def check(
    home: HomeOption = HERE,
    study: Annotated[
        Path | None,
        typer.Option("--study", help="Read the table, too, and hold it against this study (TOML)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check settings, keys, table, disk, clock, proxy and the way to the coordinator; sends no data.

    Example:
        clinimeta site check --study study.toml
    """
    from clinimeta.client.check import examine
    from clinimeta.common.findings import require_no_fault, shown

    findings = examine(home_of(home), _plans(study)[0].table if study is not None else None)
    typer.echo(shown(findings, as_json))
    require_no_fault(findings)


@app.command("dry-run")
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

    for line in run_dry(open_hospital(home_of(home)), _plans(study)[0]).lines():
        typer.echo(line)


@app.command()
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
        for known in _plans(study):
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
        typer.echo(f"To approve it: clinimeta site approve {one.digest[:12]} --by NAME")
        typer.echo("")


@app.command()
def budget(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Say what each study has cost patients in privacy, and what is left of the hospital's budget.

    Example:
        clinimeta site budget --home site
    """
    from clinimeta.client.hospital import budget_of, policy_of

    found = home_of(home)
    kept = budget_of(found, policy_of(found))
    lifetime = kept.lifetime()
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


app.add_typer(ledger_cli.app, name="ledger")


@app.command()
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


@app.command()
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


@app.command()
def schema() -> None:
    """Print the JSON schema of site.toml, for editors and for checks before a roll-out.

    Example:
        clinimeta site schema > site.schema.json
    """
    from clinimeta.client.settings_schema import schema as of_settings

    typer.echo(json.dumps(of_settings(), indent=1))


def _require_address(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not host or "/" in text or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(
            "this is not the coordinator's address",
            where="--coordinator",
            found=repr(text),
            expected="HOST:PORT, without https://",
            remedy="for example --coordinator hub.example.org:9443",
        )


def _token_in(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "the token cannot be read",
            where=str(file),
            found=type(error).__name__,
            expected="a text file with the line that the operator gave you",
            remedy="check the path",
        ) from None


def _plans(path: Path) -> "list[Plan]":
    from clinimeta.common.study import read_study

    if not path.is_file():
        raise UserError("there is no such study file", where=str(path), remedy="check the path")
    study = read_study(path.read_text(encoding="utf-8"), str(path))
    arms = (study.trained, study.arm(study.primary))
    return list({plan.digest: plan for plan in (study.plan(arm, study.seeds[0]) for arm in arms)}.values())
