"""A run's numbers for TensorBoard or MLflow, each an extra: `clinimeta export --to`."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clinimeta.common.errors import RunDirError, UserError
from clinimeta.common.study import Study, read_study
from clinimeta.server.series import Point, points
from clinimeta.server.store import RunDir

BATCH = 1000
"""So many numbers MLflow takes in one request."""
TAG = "clinimeta.run"
_FILES = ("study.toml", "manifest.json", "model.safetensors", "results.json", "report.html")


@dataclass(frozen=True, slots=True)
class Run:
    """What is exported: a name that no other run has, when it began, where it lies."""

    name: str
    started: datetime
    folder: RunDir

    @staticmethod
    def in_folder(path: Path) -> "Run":
        """A run directory of `clinimeta simulate`.

        Raises:
            RunDirError: it is none.
        """
        folder = RunDir.open(path)
        began = datetime.fromtimestamp((path / "study.toml").stat().st_mtime, UTC)
        return Run(path.resolve().name, began, folder)

    def study(self) -> Study:
        """The study as it ran."""
        return read_study(self.folder.study_toml(), str(self.folder.path / "study.toml"))

    def points(self) -> list[Point]:
        """All that was measured round by round.

        Raises:
            RunDirError: nothing was yet.
        """
        found = [point for point in points(self.folder.rounds()) if math.isfinite(point.value)]
        if not found:
            raise RunDirError(
                "there is nothing to export yet",
                where=str(self.folder.path),
                found="no finished round",
                remedy="wait for the first one",
            )
        return found


def to_tensorboard(run: Run, out: Path) -> int:
    """Write the run's numbers as TensorBoard's event file into a folder of its own; how many.

    Raises:
        UserError: TensorBoard is not installed, or the run was exported there before.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("TensorBoard", "tensorboard") from None
    folder, found = out / run.name, run.points()
    if folder.exists() and any(folder.iterdir()):
        raise UserError("the run was exported before", where=str(folder), remedy="choose another --out")
    with SummaryWriter(str(folder)) as writer:
        for point in found:
            at = run.started.timestamp() + point.seconds
            writer.add_scalar(point.series, point.value, point.round, walltime=at)
        writer.add_text("study", "\n".join(f"    {line}" for line in run.folder.study_toml().splitlines()))
    return len(found)


def to_mlflow(run: Run, uri: str) -> int:
    """Log the run's numbers, settings and files at an MLflow server (or folder); how many numbers.

    Raises:
        UserError: MLflow is not installed, cannot be reached, or has the run already.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise _missing("MLflow", "mlflow") from None
    found, study = run.points(), run.study()
    began = int(run.started.timestamp() * 1000)
    try:
        client = MlflowClient(tracking_uri=uri or None)
        known = client.get_experiment_by_name(study.name)
        experiment = known.experiment_id if known else client.create_experiment(study.name)
        if client.search_runs([experiment], f"tags.`{TAG}` = '{run.name}'", max_results=1):
            raise UserError(
                "MLflow has this run already",
                found=run.name,
                where=f"MLflow's experiment '{study.name}'",
                remedy="delete it there first",
            )
        made = client.create_run(experiment, began, {TAG: run.name}, run.name).info.run_id
        settings = [Param(key, value[:500]) for key, value in settings_of(study).items()]
        client.log_batch(made, params=settings[:100])
        try:
            for start in range(0, len(found), BATCH):
                batch = found[start : start + BATCH]
                metrics = [Metric(p.series, p.value, began + int(p.seconds * 1000), p.round) for p in batch]
                client.log_batch(made, metrics=metrics)
            for name in _FILES:
                if (run.folder.path / name).exists():
                    client.log_artifact(made, str(run.folder.path / name))
            client.set_terminated(made, end_time=began + int(max(p.seconds for p in found) * 1000))
        except BaseException:
            with suppress(MlflowException):
                client.delete_run(made)  # nothing half exported
            raise
    except MlflowException as error:
        raise UserError(
            "MLflow did not take the run",
            found=type(error).__name__,  # its text may repeat the address, and with it a password
            expected="a server that answers, or a folder or database of MLflow's",
            remedy="check --uri, or MLFLOW_TRACKING_URI, and whether the server runs",
        ) from None
    return len(found)


def settings_of(study: Study) -> dict[str, str]:
    """The settings of what was trained, flat: `training.rounds`, `model.name`, ..."""
    arm = study.trained
    return {"seed": str(study.seeds[0]), **dict(_flat(arm.model_dump(mode="json"), ""))}


def _flat(values: Mapping[str, Any], before: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, str(value))]
    return found


def _missing(what: str, extra: str) -> UserError:
    return UserError(
        f"{what} is not installed", remedy=f"install the extra: pip install 'clinimeta[{extra}]'"
    )
