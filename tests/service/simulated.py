"""What the same study gives in a simulation: the model's bytes."""

from collections.abc import Mapping
from pathlib import Path

from clinimeta.client.site import Site
from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records
from clinimeta.server.app import Outcome
from clinimeta.server.runner import finish, job_of
from clinimeta.server.store import RunDir
from clinimeta.simulations.loopback import LoopbackEngine


def simulated(study: Study, tables: Mapping[str, Records], folder: Path) -> bytes:
    """The model that the loopback simulation trains."""
    run_dir, outcome = RunDir.create(folder, study.to_toml()), Outcome()
    job = job_of(study, "simulated", run_dir, len(tables), lambda _: None)
    LoopbackEngine()(job, outcome, {name: Site(name, records) for name, records in tables.items()})
    finish(study, run_dir, outcome)
    return (run_dir.path / "model.safetensors").read_bytes()
