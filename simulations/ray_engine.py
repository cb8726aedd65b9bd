"""Flower's own engine: the same two apps on Ray, one virtual SuperNode a hospital (extra `ray`)."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flwr.app import Context

from clinimeta.client.app import client_app
from clinimeta.client.site import Site
from clinimeta.common.errors import UserError
from clinimeta.common.study import read_study
from clinimeta.server.app import Job, Outcome, server_app
from clinimeta.simulations import federation


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Run a training's apps with `flwr.simulation`; workers read their hospital's data themselves."""

    study_toml: str
    data: Path | None
    cpus: int = 1

    def __call__(self, job: Job, outcome: Outcome, sites: Mapping[str, Site]) -> None:
        """Do `job` over these hospitals.

        Raises:
            UserError: Ray is not installed.
            RuntimeError: Ray or Flower stopped before the training was done.
        """
        names = tuple(sites)
        run_simulation = _flower_simulation()
        run_simulation(
            server_app=server_app(job, outcome, poll_s=0.02),
            client_app=client_app(partial(open_partition, self.study_toml, self.data, names)),
            num_supernodes=len(names),
            backend_config={"client_resources": {"num_cpus": self.cpus, "num_gpus": 0.0}},
        )
        if outcome.state is None:
            raise RuntimeError("Flower's simulation engine stopped before the training was done")


def open_partition(study_toml: str, data: Path | None, train: tuple[str, ...], context: Context) -> Site:
    """The hospital of a virtual SuperNode (run in a Ray worker)."""
    study = read_study(study_toml, "study.toml")
    training = federation.load(study, data).training(study.table, train)
    return training.sites[train[int(context.node_config["partition-id"])]]


def require_ray() -> None:
    """Complain before anything is begun.

    Raises:
        UserError: Ray is not installed.
    """
    try:
        import ray  # noqa: F401 (only to see whether it is there)
    except ImportError:
        raise UserError(
            "the engine 'ray' is not installed",
            expected="Flower's simulation extra",
            remedy="pip install 'clinimeta[ray]', or leave out --engine",
        ) from None


def _flower_simulation() -> Callable[..., None]:
    """Flower's own function, imported late; deprecated for `flwr run`, which cannot take apps made here."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    return run_simulation
