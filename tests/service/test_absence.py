"""Hospitals that stay away: named where the others are enough, waited for where they are not."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from daemons import Federation, clinimeta, federation_of, until
from small import model_of, some

from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records

pytestmark = [
    pytest.mark.service,
    pytest.mark.long,
    pytest.mark.data,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("service"),
]
TRIO = ("cleveland", "hungary", "long_beach")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]) -> Iterator[Federation]:
    federation = federation_of(tmp_path_factory.mktemp("trio"), some(tables, *TRIO))
    federation.sites["hungary"].stop()
    yield federation
    federation.stop()


def with_quorum(study: str, quorum: float, deadline_s: float, rounds: int) -> str:
    changes = {
        "quorum = 1.0": f"quorum = {quorum}",
        "deadline_s = 40.0": f"deadline_s = {deadline_s}",
        "rounds = 3": f"rounds = {rounds}",
    }
    for before, after in changes.items():
        assert before in study
        study = study.replace(before, after, 1)
    return study


def test_a_quorum_goes_on_and_names_who_stays_away(trio: Federation, study_text: str) -> None:
    name = trio.run(with_quorum(study_text, 0.5, 12.0, 2))
    trio.finished(name)
    rounds = trio.rounds(name)
    away = {"hungary": "not connected"}
    assert [(row["accepted"], row["refused"], row["silent"]) for row in rounds] == [(2, away, [])] * 2
    assert "hungary gave no answer: not connected" in clinimeta("show", name, "--home", trio.hub.folder)
    said = [line for line in trio.hub.log().splitlines() if "sites missing from a round" in line]
    assert len(said) == 2
    assert all("hungary" in line and "cleveland" not in line for line in said)


def test_below_the_quorum_it_waits_says_for_whom_and_goes_on_when_they_come(
    trio: Federation, study_text: str, study: Study, tables: Mapping[str, Records], tmp_path: Path
) -> None:
    name = trio.run(with_quorum(study_text, 1.0, 6.0, 3))
    waiting = until(lambda: (e := trio.experiment(name))["state"] == "waiting" and e, 90)
    assert "2 usable answers, 3 needed" in waiting["detail"]
    assert "not connected: hungary" in waiting["detail"]
    shown = clinimeta("show", name, "--home", trio.hub.folder)
    assert "because: round 1: 2 usable answers, 3 needed (not connected: hungary)" in shown
    assert "hungary" in clinimeta("coordinator", "status", "--home", trio.hub.folder)
    assert trio.rounds(name) == []

    trio.sites["hungary"].start()
    done = trio.finished(name)
    assert done["detail"] == ""
    expected = model_of(study, some(tables, *TRIO), tmp_path)
    assert trio.model_path(name).read_bytes() == expected
