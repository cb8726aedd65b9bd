"""Secure aggregation between real daemons, under the policy that a hospital starts with."""

import json
import os
import signal
from collections.abc import Iterator, Mapping

import pytest
import torch
from daemons import Federation, clinimeta, federation_of, until
from simulated import simulated

from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records
from clinimeta.common.trained_model import read_model
from clinimeta.simulations.protecting import protected

pytestmark = [
    pytest.mark.service,
    pytest.mark.data,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("masked"),
]
SITES = ("cleveland", "hungary", "long_beach")


@pytest.fixture(scope="module")
def masked_study(study: Study) -> Study:
    return protected(study, masked=True, epsilon=0.0, delta=1e-6, clip=0.0)


@pytest.fixture(scope="module")
def three(tables: Mapping[str, Records]) -> Mapping[str, Records]:
    return {name: tables[name] for name in SITES}


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, three: Mapping[str, Records]) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("masked")
    federation = federation_of(root, three, masked=True)
    yield federation
    federation.stop()


def test_only_sums_are_seen_and_they_train_the_model_of_the_simulation(
    masked: Federation,
    masked_study: Study,
    three: Mapping[str, Records],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    name = masked.run(masked_study.to_toml())
    masked.finished(name)
    folder = tmp_path_factory.mktemp("simulated") / "run"
    simulated(masked_study, three, folder)
    found, expected = read_model(masked.model_path(name)).params, read_model(folder).params
    assert all(torch.allclose(found[key], expected[key], atol=1e-3) for key in expected)
    kinds = {
        record["kind"]
        for site in SITES
        for record in json.loads(
            clinimeta("site", "ledger", "show", "--json", "--last", 200, "--home", masked.sites[site].folder)
        )
    }
    assert kinds == {"Introduction", "Masking", "masked"}
    assert all(not row["by_site"] for row in masked.rounds(name))


@pytest.mark.long
def test_the_round_loop_is_killed_between_the_phases(masked: Federation, masked_study: Study) -> None:
    name = masked.run(masked_study.to_toml())
    until(lambda: masked.rounds(name), 90)
    os.kill(masked.hub.children()["clinimeta.server.runner"], signal.SIGKILL)
    experiment = masked.finished(name)
    assert experiment["submissions"] == 2
    assert [row["round"] for row in masked.rounds(name)] == [*range(1, experiment["rounds"] + 1)]
