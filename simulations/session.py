"""One `clinimeta simulate` from request to report: find the study, do it, show it."""

import csv
import io
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from rich.console import Console

from clinimeta.common.errors import RunDirError, StudyError, UserError
from clinimeta.common.rng import generator
from clinimeta.common.study import Study, read_study
from clinimeta.common.tasks.sampler import split_rows
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary
from clinimeta.simulations import federation, ray_engine, studies
from clinimeta.simulations.batched import BatchedEngine
from clinimeta.simulations.display import Progress, answer_lines, score_tables
from clinimeta.simulations.federation import Federation
from clinimeta.simulations.loopback import LoopbackEngine
from clinimeta.simulations.protecting import protected
from clinimeta.simulations.ray_engine import RayEngine
from clinimeta.simulations.report import render_report
from clinimeta.simulations.results import Results
from clinimeta.simulations.run import Engine, Run, check

DELTA = 1e-6
"""With what probability a promise may not hold, where nobody says."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line; `given` tells whether a study was named."""

    study: str = "default"
    data: Path | None = None
    out: Path | None = None
    resume: Path | None = None
    engine: str = "loopback"
    device: str = "cpu"
    encode: bool = True
    rounds: int | None = None
    seeds: tuple[int, ...] | None = None
    masked: bool = False
    epsilon: float = 0.0
    delta: float | None = None
    clip: float = 0.0
    argv: tuple[str, ...] = ()
    given: bool = False


@dataclass(slots=True)
class _Display:
    """Shows a run on the console as it goes."""

    progress: Progress

    def training(self, title: str, rounds: int, done: int) -> None:
        self.progress.stage(title, total=rounds, done=done)

    def round(self, summary: RoundSummary) -> None:
        loss = summary.metrics.get("query_loss")
        missing = len(summary.refused) + len(summary.silent)
        text = "" if loss is None else f"query loss {loss:.3f}"
        self.progress.advance(text + (f", {missing} sites missing" if missing else ""))

    def judging(self, title: str) -> None:
        self.progress.stage(f"judging: {title}")


def simulate(request: Request) -> Results:
    """Run or resume a study; prints progress and tables on stderr and writes the run directory.

    Raises:
        UserError: the study, the data or the run directory cannot be used; says why.
        QuorumError: too few hospitals answered.
        NumericalError: a training left the finite numbers.
    """
    torch.set_num_threads(1)  # on few cores and small tensors, more threads are slower
    study, run_dir = _resume(request) if request.resume else (_study(request), None)
    engine = _engine(request, study)
    loaded = federation.load(study, request.data, _device(request))
    check(study, list(loaded.sites))
    if run_dir is None:
        run_dir = RunDir.create(request.out or _free_folder(study.name), study.to_toml())
    elif "data_sha256" in (manifest := _manifest_if_any(run_dir)):
        _same_data(run_dir, manifest["data_sha256"], loaded)
    _log_to(run_dir)
    console = Console(stderr=True)
    with Progress(console) as progress:
        run = Run(
            study=study,
            run_dir=run_dir,
            federation=loaded,
            engine=engine,
            observer=_Display(progress),
            command=shlex.join(["clinimeta", *request.argv]),
        )
        try:
            results = run.execute()
        except KeyboardInterrupt:
            again = ["clinimeta", "simulate", "--resume", str(run_dir.path)]
            again += ["--data", str(request.data)] if request.data else []
            console.print(f"to go on: {shlex.join(again)}", markup=False, soft_wrap=True)
            raise
    run_dir.write_text("report.html", render_report(study, results))
    if loaded.synthetic:
        write_example(run_dir, study, loaded)
    for table in score_tables(study, results):
        console.print(table)
    for line in answer_lines(study, results):
        console.print(line, markup=False)
    console.print(f"report: {run_dir.path / 'report.html'}", markup=False, soft_wrap=True)
    return results


def write_example(run_dir: RunDir, study: Study, loaded: Federation) -> None:
    """An invented hospital's `example/cases.csv` (5 labelled a class) and `example/new.csv`, for `adapt`."""
    records = loaded.sites[list(loaded.sites)[-1]].records
    table = loaded.tables[list(loaded.sites)[-1]]
    draw = "per_class" if study.table.classes else "rows"
    chosen = split_rows(table, 5, draw, len(study.table.classes), generator("example"), shrink=True)
    if chosen is None:
        return
    names = list(records.cells)
    without_target = [name for name in names if name != study.table.target]
    (run_dir.path / "example").mkdir(exist_ok=True)
    for name, rows, columns in zip(("cases", "new"), chosen, (names, without_target), strict=True):
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([records.cells[column][row] for column in columns] for row in rows.tolist())
        run_dir.write_text(f"example/{name}.csv", buffer.getvalue())


def _study(request: Request) -> Study:
    study = studies.find(request.study)
    changes: dict[str, object] = {}
    if request.seeds is not None:
        changes["seeds"] = request.seeds
    if request.rounds is not None:
        changes["arms"] = tuple(
            arm.model_copy(
                update={
                    "training": arm.training.model_copy(
                        update={"rounds": min(request.rounds, arm.training.rounds)}
                    )
                }
            )
            for arm in study.arms
        )
    study = study.model_copy(update=changes)
    if request.delta is not None and not request.epsilon:
        raise UserError(
            "a delta without an epsilon promises nothing",
            where="--delta",
            expected="--epsilon beside it",
            remedy="for example --epsilon 8 --delta 1e-6",
        )
    if request.masked or request.epsilon or request.clip:
        delta = DELTA if request.delta is None else request.delta
        study = protected(
            study, masked=request.masked, epsilon=request.epsilon, delta=delta, clip=request.clip
        )
    return study


def _resume(request: Request) -> tuple[Study, RunDir]:
    assert request.resume is not None
    protecting = request.masked or request.epsilon or request.clip or request.delta is not None
    if request.given or request.out or request.rounds is not None or request.seeds is not None or protecting:
        raise RunDirError(
            "a resumed run goes on as it was",
            where=f"--resume {request.resume}",
            found="a study, --out, --rounds, --seeds or a protection beside it",
            remedy="leave those out, or start a new run",
        )
    run_dir = RunDir.open(request.resume)
    return read_study(run_dir.study_toml(), str(run_dir.path / "study.toml")), run_dir


def _manifest_if_any(run_dir: RunDir) -> dict[str, object]:
    """The manifest, or nothing where the run was stopped before it was written."""
    return run_dir.manifest() if (run_dir.path / "manifest.json").exists() else {}


def _same_data(run_dir: RunDir, before: object, loaded: Federation) -> None:
    now = dict(loaded.files)
    if before != now:
        known = before if isinstance(before, dict) else {}
        changed = sorted(name for name in {*now, *known} if now.get(name) != known.get(name))
        raise RunDirError(
            "the data are not those that the run began with",
            where=str(run_dir.path / "manifest.json"),
            found=f"other SHA-256 of: {', '.join(changed)}",
            expected="the same files",
            remedy="give the same --data, or start a new run",
        )


def _engine(request: Request, study: Study) -> Engine:
    if request.engine != "loopback" and study.faults != type(study.faults)():
        raise StudyError(
            "faults are injected by the loopback engine only",
            remedy=f"leave out --engine {request.engine}, or [faults]",
        )
    if request.engine == "ray" and any(arm.protection.in_whole_numbers for arm in study.arms):
        raise StudyError(
            "Ray's workers have no keys to protect answers with",
            remedy="use --engine batched (the same sums, without masks) or loopback",
        )
    if request.engine == "ray":
        ray_engine.require_ray()
        return RayEngine(study.to_toml(), request.data.resolve() if request.data else None)
    if request.engine == "batched":
        return BatchedEngine()
    return LoopbackEngine(encode=request.encode, faults=study.faults)


def _device(request: Request) -> str:
    if request.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "there is no GPU that torch can use",
            where="--device cuda",
            found=f"torch {torch.__version__}",
            expected="an NVIDIA GPU and a torch built for it",
            remedy="leave --device out, or install torch with CUDA",
        )
    if request.device == "cuda" and request.engine == "ray":
        raise UserError(
            "Ray's workers compute on their processors",
            where="--device cuda",
            remedy="use --engine batched or loopback with it",
        )
    return request.device


def _free_folder(name: str) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, `-3`, ... that is free."""
    candidate, number = Path("runs") / name, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        number += 1
        candidate = Path("runs") / f"{name}-{number}"
    return candidate


def _log_to(run_dir: RunDir) -> None:
    """Structured events, a JSON line each, beside the run; sites, rounds and counts only."""
    file = (run_dir.path / "events.jsonl").open("a", encoding="utf-8")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(serializer=json.dumps),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=file),
        cache_logger_on_first_use=False,
    )
