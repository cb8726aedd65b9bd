"""`clinimeta adapt`: a hospital adapts a trained model to its own patients (run by the site)."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clinimeta.common.errors import UserError, nearest


def adapt(
    run_dir: Annotated[Path, typer.Argument(help="A finished run, or a model.safetensors.")],
    support: Annotated[
        Path, typer.Option("--support", help="CSV of your labelled patients, a header and a line each.")
    ],
    predict: Annotated[Path, typer.Option("--predict", help="CSV of the patients to predict.")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")],
    prevalence: Annotated[
        str,
        typer.Option(
            help="Share of the second class among your patients, e.g. 0.1 (several classes: all of them)."
        ),
    ] = "",
    keep: Annotated[
        str, typer.Option("--id", help="A column of the new patients to copy beside the predictions.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Adapt a trained model to your own labelled patients and predict new ones, offline, in seconds.

    Nothing leaves this machine. RUN_DIR is the folder of a finished run, or a model.safetensors.

    The output has a line a patient: `line` (in the file of new patients), the column of --id, `predicted`,
    and `probability_CLASS` for each class. Where the target is a number, and the algorithm is one that knows
    how sure it is, `standard_deviation` stands beside it.

    Example:
        clinimeta adapt runs/default --support cases.csv --predict new.csv --out predictions.csv
    """
    # Imported here, so that --help does not wait for torch.
    from clinimeta.client.local import adapt as adapt_locally
    from clinimeta.client.predictions import write_predictions
    from clinimeta.client.sources.csv_files import read_csv
    from clinimeta.common.trained_model import read_model

    if out.exists() and not force:
        raise UserError(
            "the output file is there already", where=str(out), remedy="choose another, or add --force"
        )
    if any(out.exists() and source.exists() and out.samefile(source) for source in (support, predict)):
        raise UserError(
            "the output would replace one of the patients' tables", where=str(out), remedy="choose another"
        )
    if not out.parent.is_dir():
        raise UserError("the output's folder does not exist", where=str(out.parent), remedy="create it first")
    model = read_model(run_dir)
    new = read_csv(predict)
    if keep and keep not in new.cells:
        raise UserError(
            f"the column '{keep}' is missing",
            where=new.where,
            found=f"{len(new.cells)} columns: {', '.join(sorted(new.cells))}",
            expected=nearest(keep, new.cells),
            remedy="give --id one of these, or leave it out",
        )
    adapted = adapt_locally(model, read_csv(support), new, prevalence=_shares(prevalence))
    classes = model.plan.table.classes
    spread = None if adapted.spread is None else adapted.spread.tolist()
    write_predictions(out, new, classes, adapted.probabilities.tolist(), keep, spread)
    for warning in adapted.warnings:
        typer.echo(f"note: {warning}", err=True)
    summary = {
        "predictions": str(out),
        "rows": len(new),
        "support": adapted.support_rows,
        "temperature": adapted.temperature,
        "assumed_class_mix": dict(zip(classes, adapted.assumed, strict=True)),
        "seconds": round(adapted.seconds, 3),
        "warnings": list(adapted.warnings),
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
        return
    given = ", ".join(
        f"{count} of class '{name}'" if classes else f"{count} rows"
        for name, count in adapted.support_rows.items()
    )
    typer.echo(f"{len(new)} patients predicted in {adapted.seconds:.2f} s from {given} -> {out}")
    if classes and not prevalence:
        mix = ", ".join(f"{share:.0%} {name}" for name, share in zip(classes, adapted.assumed, strict=True))
        typer.echo(f"The probabilities assume a mix of {mix}; give --prevalence if your patients differ.")


def _shares(text: str) -> tuple[float, ...] | None:
    if not text:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            "the prevalence is not a number",
            where="--prevalence",
            found=repr(text),
            expected="a share between 0 and 1, with a decimal point",
            remedy="for example --prevalence 0.1",
        ) from None
