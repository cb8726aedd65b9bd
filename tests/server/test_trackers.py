"""What TensorBoard and MLflow themselves read of an exported run."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clinimeta.common.errors import UserError
from clinimeta.common.study import Study
from clinimeta.server.series import points
from clinimeta.server.store import RunDir
from clinimeta.server.trackers import BATCH, TAG, Run, to_mlflow, to_tensorboard
from clinimeta.server.training import RoundSummary
from clinimeta.simulations import studies
from clinimeta.simulations.cli import main

ROUNDS = 300
SITES = ("Ulm/West", "Ulm?West", "Köln")


@pytest.fixture(scope="module")
def study() -> Study:
    return studies.find("default")


@pytest.fixture
def run(tmp_path: Path, study: Study) -> Run:
    folder = RunDir.create(tmp_path / "runs" / "first", study.to_toml())
    for number in range(1, ROUNDS + 1):
        by_site = {site: {"query_loss": float(place)} for place, site in enumerate(SITES)}
        folder.append_round(
            RoundSummary(
                *("t", "maml", number, 4, 3, {}, ("Bern",)),
                *({"query_loss": 1 / number}, float("nan"), 9, 8, 0.5, {"auroc": 0.75}, 0, by_site),
            )
        )
    return Run.in_folder(folder.path)


def test_series_are_named_for_what_they_are(run: Run) -> None:
    found = {point.series for point in points(run.folder.rounds())}
    assert found == {
        *(f"round/{name}" for name in ("hospitals_accepted", "hospitals_missing", "gradient_norm")),
        *(f"round/{name}" for name in ("bytes_down", "bytes_up", "seconds", "rollbacks")),
        *("query/query_loss", "unseen/auroc"),
        *(f"site/{name}/query_loss" for name in ("Köln", "Ulm_West", "Ulm_West 2")),
    }


def test_tensorboard_reads_every_number_at_its_round_and_time(run: Run, tmp_path: Path) -> None:
    count = to_tensorboard(run, tmp_path / "logs")
    events = EventAccumulator(str(tmp_path / "logs" / "first"), {"scalars": 0})
    events.Reload()
    assert sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"]) == count
    loss = events.Scalars("query/query_loss")
    assert [one.step for one in loss] == list(range(1, ROUNDS + 1))
    assert loss[3].value == 0.25
    assert loss[9].wall_time - loss[0].wall_time == pytest.approx(4.5)
    assert {one.value for one in events.Scalars("site/Ulm_West 2/query_loss")} == {1.0}
    assert "round/gradient_norm" not in events.Tags()["scalars"], "no number was finite"
    with pytest.raises(UserError, match="exported before"):
        to_tensorboard(run, tmp_path / "logs")


def test_mlflow_reads_numbers_settings_and_files(run: Run, tmp_path: Path, study: Study) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    client.create_experiment(study.name, artifact_location=(tmp_path / "artifacts").as_uri())
    assert to_mlflow(run, uri) > BATCH
    (found,) = client.search_runs([client.get_experiment_by_name(study.name).experiment_id])
    assert (found.info.run_name, found.info.status, found.data.tags[TAG]) == ("first", "FINISHED", "first")
    assert found.data.params["training.rounds"] == str(study.trained.training.rounds)
    history = client.get_metric_history(found.info.run_id, "query/query_loss")
    assert sorted((one.step, one.value) for one in history) == [(n, 1 / n) for n in range(1, ROUNDS + 1)]
    assert {one.path for one in client.list_artifacts(found.info.run_id)} == {"study.toml"}
    with pytest.raises(UserError, match="has this run already"):
        to_mlflow(run, uri)
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_a_run_that_mlflow_did_not_take_whole_is_not_there(
    run: Run, tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        to_mlflow(run, uri)
    monkeypatch.undo()
    client = MlflowClient(tracking_uri=uri)
    assert client.search_runs([client.get_experiment_by_name(study.name).experiment_id]) == []


def test_an_address_is_not_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="did not take the run") as refused:
        to_mlflow(run, "http://ada:secret@127.0.0.1:1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "the folder to write is missing"),
        (("--to", "tensorboard"), "the folder to write is missing"),
        (("--to", "mlflow", "--out", "x"), "MLflow takes no --out"),
    ],
)
def test_options_that_do_not_go_together(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "a-run", *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_run_directory_is_exported_by_command(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run.folder.path), "--to", "tensorboard", "--out", str(tmp_path / "logs")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    assert f"tensorboard --logdir {tmp_path / 'logs'}" in capsys.readouterr().out
    assert list((tmp_path / "logs" / "first").iterdir())


def test_a_run_without_a_round_has_nothing_to_export(tmp_path: Path, study: Study) -> None:
    run = Run.in_folder(RunDir.create(tmp_path / "new", study.to_toml()).path)
    with pytest.raises(UserError, match="nothing to export yet"):
        to_tensorboard(run, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
