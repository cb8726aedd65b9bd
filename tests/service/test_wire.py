"""On the wire is what the ledger says, to the byte, and nothing of a patient; nor is any in a log."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from daemons import Federation, clinimeta, enrol, free_ports, make_hub, until
from small import PAIR
from tap import Tap

from clinimeta.common.tasks.table import Records

pytestmark = [
    pytest.mark.service,
    pytest.mark.data,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("wire"),
]


def planted(records: Records) -> Records:
    """The same table with a name and a number for every patient that no study asks for."""
    names = [f"Zyx-{row:04d}-Patient" for row in range(len(records))]
    numbers = [f"{row}.730914" for row in range(len(records))]
    return Records(records.where, {**records.cells, "name": names, "insurance": numbers})


@pytest.fixture(scope="module")
def tapped(
    tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]
) -> Iterator[tuple[Federation, Tap]]:
    federation = make_hub(tmp_path_factory.mktemp("wire"))
    tap = Tap(federation.hub.folder, free_ports(1)[0], federation.port)
    tap.start()
    try:
        federation.hub.start()
        for name in PAIR:
            address = f"127.0.0.1:{tap.port}" if name == PAIR[0] else ""
            enrol(federation, name, planted(tables[name]), address).start(wait=False)
        for site in federation.sites.values():
            until(site.ready, 60)
        yield federation, tap
    finally:
        federation.stop()
        tap.stop()


def test_the_ledger_has_every_byte_and_no_byte_is_of_a_patient(
    tapped: tuple[Federation, Tap], study_text: str
) -> None:
    federation, tap = tapped
    site = federation.sites[PAIR[0]]
    federation.finished(federation.run(study_text))
    shown = clinimeta("site", "ledger", "show", "--json", "--last", 1000, "--home", site.folder)
    records = json.loads(shown)
    assert {record["kind"] for record in records} == {"Introduction", "MetaGradient", "Calibration"}
    assert sum(record["bytes"] for record in records) == sum(tap.pushed)
    until(lambda: "word alone" not in clinimeta("site", "ledger", "verify", "--home", site.folder), 30)
    places = [*tap.bodies, shown.encode(), *map(Path.read_bytes, _written(federation))]
    for secret in (b"Zyx-", b".730914"):
        assert not any(secret in place for place in places)


def _written(federation: Federation) -> list[Path]:
    """Logs, ledgers, databases: all files but the hospitals' own tables."""
    return [path for path in federation.root.rglob("*") if path.is_file() and path.suffix != ".csv"]
