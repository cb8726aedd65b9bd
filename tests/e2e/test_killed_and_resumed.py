"""A run that is killed hard, at any moment, ends with the very weights of the undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

STUDY = """
name = "killed"
primary = "maml"
data = { name = "synthetic", sites = 6 }
[model]
name = "mlp"
hidden = [8]
[episodes]
shots = [2]
query = 5
tasks = 2
[training]
rounds = 12
cohort_size = 3
outer = { name = "yogi", rate = 0.01 }
TABLE
[[arms]]
name = "maml"
algorithm = { name = "maml", inner_steps = 2 }
[[arms]]
name = "protonet"
algorithm = { name = "protonet", embedding = 4 }
[[evaluations]]
name = "new"
split = "unseen_sites"
sites = 2
shots = [1]
repeats = 2
bootstrap = 100
curve_every = 4
curve_shots = 1
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from clinimeta.simulations.cli import main; main()", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def digests(run_dir: Path) -> dict[str, str]:
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    return dict(manifest["trainings"])


def rounds(run_dir: Path) -> list[dict[str, object]]:
    """What was measured, times and nonces apart."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def has_rounds(count: int) -> Callable[[Path], bool]:
    def reached(run_dir: Path) -> bool:
        metrics = run_dir / "metrics.jsonl"
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= count

    return reached


def is_writing_a_checkpoint(run_dir: Path) -> bool:
    return any(run_dir.glob("trainings/*/.round-*.part")) or has_rounds(9)(run_dir)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clinimeta.simulations import studies

    table = tomli_w.dumps({"table": studies.find("default").table.model_dump(mode="json")})
    path = tmp_path_factory.mktemp("study") / "killed.toml"
    path.write_text(STUDY.replace("TABLE", table))
    return path


@pytest.fixture(scope="module")
def undisturbed(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(command("simulate", str(study_file), "--out", str(out)), check=True, env=environment())
    return out


@pytest.mark.xdist_group("killed")
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(has_rounds(1), id="after-the-first-round"),
        pytest.param(is_writing_a_checkpoint, id="while-writing-a-checkpoint"),
        pytest.param(has_rounds(15), id="in-the-second-training"),
    ],
)
def test_a_killed_run_resumes_to_bit_identical_weights(
    moment: Callable[[Path], bool], study_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command("simulate", str(study_file), "--out", str(out)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not moment(out) and process.poll() is None and time.monotonic() < deadline:
        os.sched_yield()
    assert process.poll() is None, "the run was still under way"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists()
    subprocess.run(command("simulate", "--resume", str(out)), check=True, env=environment())
    assert digests(out) == digests(undisturbed)
    assert rounds(out) == rounds(undisturbed)
    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert not list(out.rglob("*.part"))


@pytest.mark.xdist_group("killed")
def test_resuming_a_finished_run_changes_no_weight(undisturbed: Path) -> None:
    before = digests(undisturbed)
    subprocess.run(command("simulate", "--resume", str(undisturbed)), check=True, env=environment())
    assert digests(undisturbed) == before
