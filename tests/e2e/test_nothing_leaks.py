"""Every byte that a site emits over a whole run, searched for what must never leave a hospital."""

import struct
from pathlib import Path

import numpy as np
import pytest

from clinimeta.client.site import Site
from clinimeta.common.rng import generator
from clinimeta.common.study import Study, read_study
from clinimeta.common.tasks.table import Records
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.simulations.loopback import LoopbackEngine

ROWS = 48
SECRET = "Erika Mustermann"

STUDY = """
name = "planted"
primary = "{arm}"
data = {{ name = "synthetic" }}
[model]
name = "mlp"
hidden = [6]
[episodes]
shots = [2, 5]
[training]
rounds = 3
local_meta_steps = {local_steps}
[table]
target = "ill"
classes = ["no", "yes"]
patient = "record_number"
columns = [{{ name = "heart_rate", center = 80.0, scale = 20.0 }}, {{ name = "potassium", center = 4.0 }}]
[[arms]]
name = "{arm}"
algorithm = {{ name = "{arm}" }}
"""


def study(arm: str, local_steps: int) -> Study:
    return read_study(STUDY.format(arm=arm, local_steps=local_steps), "planted")


def hospital(number: int) -> Site:
    """Rows of names, record numbers and values with many odd digits, so that a match is no accident."""
    values = np.random.default_rng(number).normal(size=(ROWS, 2)) * [13.7, 0.61] + [81.3, 4.2]
    ill = np.arange(ROWS) % 2
    return Site(
        f"hospital-{number}",
        Records(
            f"/srv/ward/{SECRET}.csv",
            {
                "name": [f"{SECRET} {number}-{row}" for row in range(ROWS)],
                "record_number": [f"MRN{number:03d}{row:05d}" for row in range(ROWS)],
                "heart_rate": [repr(float(v + 9 * y)) for v, y in zip(values[:, 0], ill, strict=True)],
                "potassium": [repr(float(v)) for v in values[:, 1]],
                "ill": ["yes" if y else "no" for y in ill],
            },
        ),
    )


def forbidden(site: Site, chosen: Study) -> dict[str, bytes]:
    """What must not occur: identifiers and cells as text, values raw and standardised, as float32 and 64."""
    cells = site.records.cells
    planted = {"the file's name": SECRET.encode(), "a record number": b"MRN0", "the source": b"/srv/ward"}
    table = site.table(chosen.table).rows.inputs["table"].numpy()
    for row in range(ROWS):
        for column, name in enumerate(("heart_rate", "potassium")):
            text = cells[name][row]
            planted[f"{name} of row {row} as text"] = text.encode()
            planted[f"{name} of row {row} as text, 5 digits"] = text[:7].encode()
            for kind, value in (("raw", float(text)), ("standardised", float(table[row, column]))):
                for letter in "fd":
                    planted[f"{name} of row {row}, {kind}, {letter}"] = struct.pack(f"<{letter}", value)
                    planted[f"{name} of row {row}, {kind}, {letter}, big-endian"] = struct.pack(
                        f">{letter}", value
                    )
        planted[f"row {row} as float32"] = table[row].astype("<f4").tobytes()
    return planted


def emitted(chosen: Study, sites: dict[str, Site], folder: Path) -> bytes:
    """Everything that went up the wire in a whole training, calibration included."""
    captured: list[bytes] = []

    def tap(direction: str, data: bytes) -> None:
        if direction == "up":
            captured.append(data)

    arm = chosen.arm(chosen.primary)
    run_dir = RunDir.create(folder / "run", chosen.to_toml())
    plan = chosen.plan(arm, 0)
    job = Job("t", plan, arm.training, run_dir, calibrate=plan)
    outcome = Outcome()
    LoopbackEngine(tap=tap)(job, outcome, sites)
    assert outcome.state is not None
    assert outcome.state.round == 3
    return b"".join(captured)


@pytest.mark.parametrize(
    ("arm", "local_steps"), [("maml", 1), ("maml", 3), ("protonet", 1), ("fine_tune", 2)]
)
def test_nothing_of_a_patient_is_in_what_a_site_sends(arm: str, local_steps: int, tmp_path: Path) -> None:
    chosen = study(arm, local_steps)
    sites = {site.name: site for site in map(hospital, range(3))}
    sent = emitted(chosen, sites, tmp_path)
    assert len(sent) > 3 * 3 * 200, "the tap saw the run"
    found = [
        what for site in sites.values() for what, needle in forbidden(site, chosen).items() if needle in sent
    ]
    assert found == []


def test_the_exact_number_of_rows_is_in_no_introduction(tmp_path: Path) -> None:
    chosen = study("maml", 1)
    sites = {site.name: site for site in map(hospital, range(3))}
    captured: list[bytes] = []
    arm = chosen.arm("maml")
    job = Job("t", chosen.plan(arm, 0), arm.training, RunDir.create(tmp_path / "run", chosen.to_toml()))
    outcome = Outcome()
    LoopbackEngine(tap=lambda _way, data: captured.append(data))(job, outcome, sites)
    assert {(i.rows_from, i.rows_to) for i in outcome.introductions.values()} == {(20, 49)}


def test_the_search_would_find_a_planted_row() -> None:
    """The test above has power: the same search finds a row that is put among the bytes."""
    chosen = study("maml", 1)
    site = hospital(1)
    rng = generator("noise")
    noise = bytes(int(b) for b in np.random.default_rng(rng.initial_seed() % 2**32).integers(0, 256, 5000))
    row = site.table(chosen.table).rows.inputs["table"][7].numpy().astype("<f4").tobytes()
    found = {what for what, needle in forbidden(site, chosen).items() if needle in noise + row}
    assert "row 7 as float32" in found
    assert "heart_rate of row 7, standardised, f" in found
