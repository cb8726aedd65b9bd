"""`clinimeta stop`, `resume`, `list`, `show`, `export`: experiments, as the operator handles them.

`clinimeta run`, which starts one, is gathered on the top floor, where the built-in studies are.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clinimeta.common.errors import UserError
from clinimeta.server.cli_parts import HERE, HomeOption, Json, opened, table, who

if TYPE_CHECKING:
    from clinimeta.server.trackers import Run


def stop(
    experiment: Annotated[str, typer.Argument(help="As `clinimeta list` shows it.")], home: HomeOption = HERE
) -> None:
    """Stop an experiment after what it is doing now; `clinimeta resume` goes on with it.

    Example:
        clinimeta stop heart-disease-1a2b3c
    """
    from clinimeta.server import experiments

    _, database = opened(home)
    experiments.want(database, experiment, "stopped", who())
    typer.echo(f"{experiment} is to stop")


def resume(
    experiment: Annotated[str, typer.Argument(help="As `clinimeta list` shows it.")], home: HomeOption = HERE
) -> None:
    """Go on with an experiment that was stopped or has failed, from its checkpoint.

    Example:
        clinimeta resume heart-disease-1a2b3c
    """
    from clinimeta.server import experiments

    _, database = opened(home)
    found = experiments.want(database, experiment, "running", who())
    typer.echo(f"{experiment} goes on from round {found.round}")


def list_experiments(home: HomeOption = HERE, as_json: Json = False) -> None:
    """List the experiments, the newest first.

    Example:
        clinimeta list --home hub
    """
    from clinimeta.server import experiments

    _, database = opened(home)
    rows = [
        {
            "experiment": e.id,
            "study": e.study,
            "state": e.state,
            "round": f"{e.round}/{e.rounds}",
            "sites": len(e.participants),
            "since": e.changed_at,
            "detail": e.detail,
        }
        for e in experiments.every(database)
    ]
    table(rows, as_json, "no experiment was started yet: clinimeta run STUDY")


def show(
    experiment: Annotated[str, typer.Argument(help="As `clinimeta list` shows it.")],
    home: HomeOption = HERE,
    as_json: Json = False,
) -> None:
    """Show an experiment: how far it is, who takes part, who answered in its last round, what went wrong.

    Example:
        clinimeta show heart-disease-1a2b3c
    """
    from clinimeta.server.status import experiment_lines, experiment_values

    found, database = opened(home)
    values = experiment_values(found, database, experiment)
    if as_json:
        typer.echo(json.dumps(values, indent=1))
        return
    for line in experiment_lines(values):
        typer.echo(line)


class To(StrEnum):
    """Where an export goes."""

    FOLDER = "folder"
    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"


def export(
    experiment: Annotated[
        str,
        typer.Argument(help="As `clinimeta list` shows it; to a tracker also a run directory of `simulate`."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder: the model's, or TensorBoard's.")
    ] = None,
    to: Annotated[
        To, typer.Option("--to", help="folder: the model with its card. mlflow, tensorboard: the curves.")
    ] = To.FOLDER,
    uri: Annotated[
        str, typer.Option("--uri", envvar="MLFLOW_TRACKING_URI", help="Of MLflow: a server or a folder.")
    ] = "",
    home: HomeOption = HERE,
) -> None:
    """Write what came out of an experiment: model, manifest and model card; or its curves for a tracker.

    Examples:
        clinimeta export heart-disease-1a2b3c --out model

        clinimeta export runs/default --to tensorboard --out logs

        clinimeta export heart-disease-1a2b3c --to mlflow --uri http://localhost:5000
    """
    from clinimeta.server.export import export as export_to

    if (out is None) != (to == To.MLFLOW):
        raise UserError(
            "the folder to write is missing" if out is None else "MLflow takes no --out",
            remedy="give --out FOLDER" if out is None else "give --uri instead",
        )
    if to == To.FOLDER:
        found, database = opened(home)
        assert out is not None
        for path in export_to(found, database, experiment, out):
            typer.echo(str(path))
        return
    from clinimeta.server.trackers import Run, to_mlflow, to_tensorboard

    is_folder = (Path(experiment) / "study.toml").is_file()
    run = Run.in_folder(Path(experiment)) if is_folder else _run_of(home, experiment)
    count = to_mlflow(run, uri) if out is None else to_tensorboard(run, out)
    typer.echo(f"{count} numbers of {run.name} for {to.value}")
    if out is not None:
        typer.echo(f"next: tensorboard --logdir {out}")


def _run_of(home: Path, experiment: str) -> "Run":
    from clinimeta.server import experiments
    from clinimeta.server.store import RunDir
    from clinimeta.server.trackers import Run

    found, database = opened(home)
    known = experiments.find(database, experiment)
    began = datetime.fromisoformat(known.made_at)
    return Run(known.id, began, RunDir.open(found.experiments / known.id))


def start(home: Path, study: Any, sites: Sequence[str]) -> str:
    """Start an experiment over these hospitals (all approved ones where none is named); its id.

    Raises:
        UserError: too few hospitals, or one that cannot take part.
    """
    from clinimeta.server import enrolment, experiments

    found, database = opened(home)
    participants = list(sites) or [site.name for site in enrolment.known(database, "approved")]
    return experiments.start(found, database, study, participants, who()).id
