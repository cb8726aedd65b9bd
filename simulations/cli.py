"""The `clinimeta` command: everything on the command line, gathered on the top floor.

Heavy modules (torch, flwr) are imported inside the commands, so that `--help` is instant.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from clinimeta.client import cli as client_cli
from clinimeta.client import site_cli
from clinimeta.common.errors import ClinimetaError, GateError, NumericalError, QuorumError, UserError
from clinimeta.server import cli as server_cli
from clinimeta.server import console_cli, consortium_cli, experiments_cli
from clinimeta.server.cli_parts import HERE, HomeOption
from clinimeta.simulations import privacy_cli

EXIT_CODES = """
Exit codes: 0 done; 1 a fault of ours; 2 something you can mend (it says what); 3 too few hospitals
answered; 4 a training left the finite numbers or was stopped as poisoned; 130 interrupted.
"""

app = typer.Typer(
    name="clinimeta",
    help="Federated meta-learning for hospitals." + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
studies_app = typer.Typer(
    help="List the built-in studies, or show one. Example: clinimeta studies.", rich_markup_mode="markdown"
)
bench_app = typer.Typer(
    help="Measure speed, or what privacy costs. Example: clinimeta bench adaptation --quick.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command()(client_cli.adapt)
OWN = {"studies": studies_app, "bench": bench_app, "privacy": privacy_cli.app}
for name, group in (OWN | {"coordinator": server_cli.app, "site": site_cli.app}).items():
    app.add_typer(group, name=name)
app.add_typer(consortium_cli.app, name="consortium")
app.command("list")(experiments_cli.list_experiments)
for command in (experiments_cli.stop, experiments_cli.resume, experiments_cli.show, experiments_cli.export):
    app.command()(command)


class EngineName(StrEnum):
    """How a simulation's hospitals are asked."""

    LOOPBACK = "loopback"
    BATCHED = "batched"
    RAY = "ray"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
BenchOut = Annotated[Path, typer.Option("--out", help="Folder for the CSV, the SVG and machine.json.")]
Quick = Annotated[bool, typer.Option("--quick", help="Under a minute: smaller and fewer repetitions.")]


class DeviceName(StrEnum):
    """Where torch computes."""

    CPU = "cpu"
    CUDA = "cuda"


def _study_texts() -> dict[str, str]:
    from clinimeta.simulations import studies

    return {name: studies.text_of(name) for name in studies.names()}


@app.command("run")
def run_study(
    study: Annotated[str, typer.Argument(help="A built-in study or a study file (TOML).")],
    home: HomeOption = HERE,
    site: Annotated[
        list[str] | None,
        typer.Option(help="A hospital that takes part; may be given several times (default: all approved)."),
    ] = None,
) -> None:
    """Start a study over the enrolled hospitals. It goes on by itself; `clinimeta show` says how far it is.

    Example:
        clinimeta run my-study.toml
    """
    from clinimeta.simulations import studies

    name = experiments_cli.start(home, studies.find(study), site or ())
    typer.echo(name)


app.add_typer(console_cli.app_over(_study_texts), name="console")


@app.command()
def simulate(
    study: Annotated[
        str, typer.Argument(help="A built-in study or a study file (TOML); the default study if left out.")
    ] = "",
    study_option: Annotated[str, typer.Option("--study", help="The same, as an option.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of the public data sets (else CLINIMETA_DATA, else a cache).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to make (default: runs/STUDY, numbered).")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with a run that was stopped.")] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="loopback: Flower in this process. batched: all sites at once. ray: Flower's own engine."
        ),
    ] = EngineName.LOOPBACK,
    device: Annotated[DeviceName, typer.Option(help="Where torch computes.")] = DeviceName.CPU,
    encode: Annotated[
        bool, typer.Option(help="Send every message through Flower's wire encoding (same results).")
    ] = True,
    rounds: Annotated[
        int | None, typer.Option(min=0, help="At most this many, instead of the study's own number.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Instead of the study's own, e.g. 0,1,2.")] = "",
    secure_aggregation: Annotated[
        bool,
        typer.Option("--secure-aggregation", help="Mask answers: only their sum is ever seen."),
    ] = False,
    epsilon: Annotated[
        float, typer.Option(min=0, help="Noise that keeps each patient (epsilon, delta)-private; 0: none.")
    ] = 0.0,
    delta: Annotated[
        float | None, typer.Option(help="With what probability it may not hold (default: 1e-6).")
    ] = None,
    clip: Annotated[
        float, typer.Option(min=0, help="Norm that a task's meta-gradient is cut to (default: 10, or 1).")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Run a study: a federation of simulated or real hospitals in this process, over Flower.

    STUDY is a built-in study's name or a study file (TOML); without it the default study runs.

    Examples:
        clinimeta simulate

        clinimeta simulate --study heart-disease --data ../shared/data

        clinimeta simulate my-study.toml --out runs/mine

        clinimeta simulate --secure-aggregation --epsilon 8

        clinimeta simulate --resume runs/mine

    """
    if study and study_option:
        raise UserError(
            "two studies are named",
            where=f"{study} and --study {study_option}",
            remedy="name one of them",
        )
    _quiet_flower()
    from clinimeta.simulations import session

    results = session.simulate(
        session.Request(
            study=study or study_option or "default",
            data=data,
            out=out,
            resume=resume,
            engine=engine.value,
            device=device.value,
            encode=encode,
            rounds=rounds,
            seeds=_seeds(seeds),
            masked=secure_aggregation,
            epsilon=epsilon,
            delta=delta,
            clip=clip,
            argv=tuple(sys.argv[1:]),
            given=bool(study or study_option),
        )
    )
    if as_json:
        typer.echo(results.to_json())


@studies_app.callback(invoke_without_command=True)
def list_studies(context: click.Context, as_json: Json = False) -> None:
    """List the built-in studies, a sentence each. Example: clinimeta studies --json."""
    if context.invoked_subcommand is None:
        from clinimeta.simulations import studies

        _list([(name, studies.find(name).title) for name in studies.names()], as_json)


@studies_app.command("show")
def show_study(name: Annotated[str, typer.Argument(help="A built-in study.")]) -> None:
    """Print a built-in study, to start from. Example: clinimeta studies show default > mine.toml."""
    from clinimeta.simulations import studies

    typer.echo(studies.text_of(name), nl=False)


@bench_app.command("adaptation")
def bench_adaptation(out: BenchOut = Path("runs/bench"), quick: Quick = False, as_json: Json = False) -> None:
    """Measure an outer step of MAML beside the other libraries that are installed.

    Example: clinimeta bench adaptation --quick
    """
    from clinimeta.simulations.benchmarks import bench

    _rows(bench.bench_adaptation(bench.Request(out, quick, tuple(sys.argv[1:]))), as_json)


@bench_app.command("rounds")
def bench_rounds(out: BenchOut = Path("runs/bench"), quick: Quick = False, as_json: Json = False) -> None:
    """Measure a simulated round's time and memory for more and more hospitals.

    Example: clinimeta bench rounds --quick
    """
    _quiet_flower()
    from clinimeta.simulations.benchmarks import bench

    _rows(bench.bench_rounds(bench.Request(out, quick, tuple(sys.argv[1:]))), as_json)


@bench_app.command("secagg")
def bench_secagg(out: BenchOut = Path("runs/bench"), quick: Quick = False, as_json: Json = False) -> None:
    """Measure secure aggregation beside its lower limit, a plain sum, and Flower's SecAgg+.

    Example: clinimeta bench secagg --quick
    """
    _quiet_flower()
    from clinimeta.simulations.benchmarks import bench

    _rows(bench.bench_secagg(bench.Request(out, quick, tuple(sys.argv[1:]))), as_json)


@bench_app.command("privacy-utility")
def bench_privacy_utility(
    data: Annotated[
        Path | None, typer.Option(help="Folder of the public data sets; eICU is measured with it, too.")
    ] = None,
    out: BenchOut = Path("runs/bench"),
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Measure what a promise to each patient costs in accuracy, for several epsilons.

    Example: clinimeta bench privacy-utility --quick
    """
    _quiet_flower()
    from clinimeta.simulations.benchmarks import bench

    _rows(bench.bench_privacy_utility(bench.Request(out, quick, tuple(sys.argv[1:]), data)), as_json)


@app.command("algorithms")
def list_algorithms(as_json: Json = False) -> None:
    """List the algorithms, a sentence each, with their hyperparameters. Example: clinimeta algorithms."""
    from clinimeta.common.algorithms import ALGORITHMS

    _list_registry(ALGORITHMS, as_json)


@app.command("models")
def list_models(as_json: Json = False) -> None:
    """List the models, a sentence each, with their hyperparameters. Example: clinimeta models --json."""
    from clinimeta.common.models import MODELS

    _list_registry(MODELS, as_json)


@app.command("datasets")
def list_datasets(as_json: Json = False) -> None:
    """List the data sets that a study can name. Example: clinimeta datasets."""
    from clinimeta.simulations.datasets import DATASETS

    _list_registry(DATASETS, as_json)


@app.command("version")
def show_version(as_json: Json = False) -> None:
    """Print the versions that a result depends on. Example: clinimeta version --json."""
    from clinimeta.simulations.run import versions

    _list(list(versions().items()), as_json, keys=("package", "version"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; end with its exit code, and never with a traceback for a user's mistake."""
    sys.exit(run(lambda: app(args=arguments, standalone_mode=False)))


def run(command: Callable[[], Any]) -> int:
    """Run a command and turn what it raises into a message on stderr and an exit code."""
    try:
        code = command()
        return code if isinstance(code, int) else 0
    except UserError as error:
        _show(error)
        return 2
    except (QuorumError, NumericalError, GateError) as error:
        remedy = "more attempts, a longer deadline_s or a smaller quorum in [training]"
        if isinstance(error, NumericalError) or "not_finite" in str(error):
            remedy = "smaller step sizes (inner_rate, outer.rate, local_rate) in the study"
        elif isinstance(error, GateError):
            remedy = "look for a hospital that sends damage; a run goes on with --resume"
        elif "too_few_rows" in str(error):
            remedy = 'smaller shots in [episodes], or draw = "rows", or hospitals with more patients'
        _show(UserError(str(error), remedy=remedy))
        return 3 if isinstance(error, QuorumError) else 4
    except ClinimetaError as error:
        _show(UserError(str(error)))
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError as error:
        _show(
            UserError(
                "the operating system refused",
                where=str(error.filename or ""),
                found=error.strerror or type(error).__name__,
                remedy="mend that (free space, permissions); a run goes on with --resume",
            )
        )
        return 2
    except (KeyboardInterrupt, click.Abort):
        typer.echo("interrupted", err=True)
        return 130


def _show(error: UserError) -> None:
    from rich.console import Console

    from clinimeta.simulations.display import show_error

    show_error(Console(stderr=True), error)


def _rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))


def _list(rows: list[tuple[str, str]], as_json: bool, keys: tuple[str, str] = ("name", "summary")) -> None:
    if as_json:
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=1))
        return
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name:<{width}}  {text}")


def _list_registry(registry: Any, as_json: bool) -> None:
    rows = [(name, registry.summary(name), registry.options(name)) for name in registry.names()]
    if as_json:
        typer.echo(json.dumps([{"name": n, "summary": s, "options": o} for n, s, o in rows], indent=1))
        return
    for name, summary, options in rows:
        typer.echo(f"{name}: {summary}")
        for option, default in options.items():
            typer.echo(f"    {option} = {json.dumps(default)}")


def _seeds(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(
            "the seeds are not different whole numbers",
            where="--seeds",
            found=repr(text),
            remedy="for example --seeds 0,1",
        )
    return seeds


def _quiet_flower() -> None:
    """Flower neither phones home nor talks over the progress display."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import logging

    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
