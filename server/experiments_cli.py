"""`clinimeta stop`, `resume`, `list`, `show`, `export`: experiments, as the operator handles them.

`clinimeta run`, which starts one, is gathered on the top floor, where the built-in studies are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clinimeta.server.cli_parts import HERE, HomeOption, Json, opened, table, who


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


def export(
    experiment: Annotated[str, typer.Argument(help="A finished one, as `clinimeta list` shows it.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    home: HomeOption = HERE,
) -> None:
    """Write what came out of an experiment: the model (safetensors), a manifest and a model card.

    Example:
        clinimeta export heart-disease-1a2b3c --out model
    """
    from clinimeta.server.export import export as export_to

    found, database = opened(home)
    for path in export_to(found, database, experiment, out):
        typer.echo(str(path))


def start(home: Path, study: Any, sites: Sequence[str]) -> str:
    """Start an experiment over these hospitals (all approved ones where none is named); its id.

    Raises:
        UserError: too few hospitals, or one that cannot take part.
    """
    from clinimeta.server import enrolment, experiments

    found, database = opened(home)
    participants = list(sites) or [site.name for site in enrolment.known(database, "approved")]
    return experiments.start(found, database, study, participants, who()).id
