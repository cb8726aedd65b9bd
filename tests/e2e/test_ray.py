"""Flower's own engine runs the same two apps to the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from clinimeta.simulations import studies

STUDY = """
name = "ray"
primary = "maml"
data = { name = "synthetic", sites = 4 }
[model]
name = "mlp"
hidden = [8]
[episodes]
shots = [2]
query = 5
tasks = 2
[training]
rounds = 3
deadline_s = 200.0
TABLE
[[arms]]
name = "maml"
algorithm = { name = "maml", inner_steps = 2 }
"""

ATTEMPTS = 3
"""Ray's workers were seen to abort now and then on small machines; a crash of Ray itself is tried again."""


def run(study: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from clinimeta.simulations.cli import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "simulate", str(study), "--out", str(out), *options],
        env=environment,
        check=False,
        text=True,
        capture_output=True,
        timeout=280,
    )


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("ray")
def test_ray_and_loopback_give_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Flower's own engine: pip install 'clinimeta[ray]'")
    table = tomli_w.dumps({"table": studies.find("default").table.model_dump(mode="json")})
    study = tmp_path / "ray.toml"
    study.write_text(STUDY.replace("TABLE", table))
    assert run(study, tmp_path / "loopback").returncode == 0
    for attempt in range(ATTEMPTS):
        done = run(study, tmp_path / f"ray{attempt}", "--engine", "ray")
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (
        json.loads((tmp_path / name / "manifest.json").read_text())["trainings"]
        for name in ("loopback", f"ray{attempt}")
    )
    assert ours == theirs
