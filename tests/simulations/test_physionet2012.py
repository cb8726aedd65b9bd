"""PhysioNet 2012: every measurement with its time, as it was; complaints that name a place."""

from pathlib import Path

import numpy as np
import pytest
from public_files import SECRET, npz, present, refused

from clinimeta.simulations.datasets import physionet2012
from clinimeta.simulations.datasets.locate import digest
from clinimeta.simulations.datasets.physionet2012 import (
    OUTCOMES,
    PARAMETERS,
    STATIC,
    PhysioNet2012,
    read_stays,
    summaries,
)

HR, TEMPERATURE = PARAMETERS.index("HR"), PARAMETERS.index("Temp")
STAYS = 4


def arrays(**changes: object) -> dict[str, object]:
    """Stays 0 to 3; heart rates and temperatures of stays 0 and 2, one of stay 3, none of stay 1."""
    return {
        "record_id": np.array([11, 12, 13, 14], dtype=np.int32),
        "static": np.array(
            [[48, 0, -1, 4, 80.5], [60, 1, 170, 1, -1], [71, -1, 160, 4, 70], [33, 1, 180, 2, 90]],
            dtype=np.float32,
        ),
        "outcome": np.array([[8, 2, 4, -1, 0], [9, -1, 7, 3, 1], [1, 1, 1, 1, 1], [-1, -1, -1, -1, 0]]),
        "obs_record": np.array([0, 0, 0, 2, 2, 3], dtype=np.int16),
        "obs_minute": np.array([9, 9, 90, 0, 2880, 30], dtype=np.int16),
        "obs_param": np.array([HR, TEMPERATURE, HR, HR, HR, TEMPERATURE], dtype=np.uint8),
        "obs_value": np.array([72, -19.5, 77, 90, 65, 36.6], dtype=np.float32),
        "static_names": np.array(STATIC),
        "outcome_names": np.array(OUTCOMES),
        "param_names": np.array(PARAMETERS),
    } | changes


def tiny(folder: Path, name: str = "set_a.npz", **changes: object) -> Path:
    return npz(folder / name, arrays(**changes))


def test_times_and_values_are_kept_as_they_are(tmp_path: Path) -> None:
    stays = read_stays(tiny(tmp_path), STAYS)
    first, none, last = stays.series(0), stays.series(1), stays.series(3)
    assert first.minute.tolist() == [9, 9, 90]
    assert first.parameter.tolist() == [HR, TEMPERATURE, HR]
    assert first.value.tolist() == np.array([72, -19.5, 77], dtype=np.float32).tolist()
    assert len(none.minute) == len(none.value) == 0
    assert last.value.tolist() == [np.float32(36.6)]
    assert (len(stays), stays.unit.tolist(), stays.death.tolist()) == (4, [4, 1, 4, 2], [0, 1, 1, 0])
    assert np.isnan(stays.static).tolist()[0] == [False, False, True, False, False]
    assert not np.isnan(stays.static).all(axis=1).any()
    assert "19.5" not in repr(stays) + repr(first)


def test_taken_stays_keep_their_own_measurements(tmp_path: Path) -> None:
    taken = read_stays(tiny(tmp_path), STAYS).take(np.array([2, 1, 0]))
    assert taken.record_id.tolist() == [13, 12, 11]
    assert [taken.series(stay).minute.tolist() for stay in range(3)] == [[0, 2880], [], [9, 9, 90]]
    assert len(taken.take(np.array([], dtype=np.int64)).measured.minute) == 0


def test_a_summary_is_of_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    found = summaries(read_stays(tiny(tmp_path), STAYS)).reshape(STAYS, len(PARAMETERS), 4)
    assert found[0, HR].tolist() == [72, 77, 72, 77]
    assert found[2, HR].tolist() == [90, 65, 65, 90]
    assert found[3, TEMPERATURE].tolist() == [np.float32(36.6)] * 4
    assert int(np.isfinite(found).sum()) == 4 * 4  # two parameters of stay 0, one each of stays 2 and 3


def test_the_units_are_sites_and_set_b_is_for_testing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(physionet2012, "read_stays", lambda path: read_stays(path, STAYS))
    tiny(tmp_path, obs_value=np.zeros(6, dtype=np.float32))
    tiny(tmp_path, "set_b.npz", record_id=np.array([21, 22, 23, 24]))
    sites = PhysioNet2012().hospitals(tmp_path)
    assert list(sites) == ["coronary", "cardiac-surgery", "medical", "surgical"]
    surgical = sites["surgical"].records.cells
    assert surgical["record_id"] == ["11", "13", "21", "23"]
    assert sites["surgical"].test == (False, False, True, True)
    assert surgical["hospital_death"] == ["0", "1", "0", "1"]
    assert (surgical["height"], surgical["weight"][:2]) == (["", "160.0"] * 2, ["80.5", "70.0"])
    assert surgical["HR_last"] == ["0.0", "0.0", "77.0", "65.0"]
    assert set(surgical["Lactate_first"]) == {""}
    assert len(sites["medical"].records) == 0
    files = PhysioNet2012().files(tmp_path)
    assert files == {name: digest(tmp_path / name) for name in ("set_a.npz", "set_b.npz")}


def spoilt(name: str, place: tuple[int, ...], value: float) -> dict[str, object]:
    array = np.array(arrays()[name])
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (spoilt("static", (1, 3), 5), "array 'static', row 2, column 'ICUType'"),
        (spoilt("static", (2, 0), np.nan), "array 'static', row 3, column 'Age'"),
        (spoilt("outcome", (3, 4), -1), "array 'outcome', row 4, column 'In-hospital_death'"),
        (spoilt("obs_record", (5,), STAYS), "array 'obs_record', row 6"),
        (spoilt("obs_record", (5,), -1), "array 'obs_record', row 6"),
        (spoilt("obs_record", (5,), 1), "array 'obs_record', row 6"),
        (spoilt("obs_minute", (4,), 2881), "array 'obs_minute', row 5"),
        (spoilt("obs_minute", (0,), -1), "array 'obs_minute', row 1"),
        (spoilt("obs_minute", (2,), 6), "array 'obs_record', row 3"),
        (spoilt("obs_param", (1,), 37), "array 'obs_param', row 2"),
        (spoilt("obs_value", (1,), np.inf), "array 'obs_value', row 2"),
        ({"obs_value": np.array([float(SECRET)])}, "array 'obs_value'"),
        ({"param_names": np.array(PARAMETERS[::-1])}, "array 'param_names', row 1"),
        ({"record_id": np.array([11, 11, 13, 14])}, "set_a.npz"),
    ],
)
def test_what_cannot_be_is_refused_by_row_and_column(
    tmp_path: Path, changes: dict[str, object], where: str
) -> None:
    path = tiny(tmp_path, **changes)
    assert refused(lambda: read_stays(path, STAYS)).where.endswith(where)


def test_a_negative_parameter_is_refused(tmp_path: Path) -> None:
    wrong = np.array(arrays()["obs_param"]).astype(np.int16)
    wrong[2] = -1
    path = tiny(tmp_path, obs_param=wrong)
    assert refused(lambda: read_stays(path, STAYS)).where.endswith("array 'obs_param', row 3")


def test_another_number_of_stays_is_refused(tmp_path: Path) -> None:
    assert refused(lambda: read_stays(tiny(tmp_path))).expected == "4000 stays"


@pytest.mark.data
def test_deaths_and_measurements_are_those_of_the_challenge(data_dir: Path) -> None:
    first, second = PhysioNet2012().stays(present(data_dir, "physionet2012"))
    assert (int(first.death.sum()), int(second.death.sum())) == (554, 568)
    assert (len(first.measured.value), len(second.measured.value)) == (1_654_892, 1_590_816)
    shares = [round(100 * float(first.death[first.unit == unit].mean()), 1) for unit in (1, 2, 3, 4)]
    assert shares == [14.0, 4.9, 18.6, 14.5]
    assert int(np.isnan(first.static[:, STATIC.index("Height")]).sum()) == 1894
    assert int((np.diff(first.start) == 0).sum()) == 3


@pytest.mark.data
def test_the_sites_hold_everyone_once(data_dir: Path) -> None:
    data = present(data_dir, "physionet2012")
    sites = PhysioNet2012().hospitals(data)
    sizes = {name: (len(site.records), sum(site.test or ())) for name, site in sites.items()}
    assert sizes == {
        "coronary": (1167, 590),
        "cardiac-surgery": (1656, 782),
        "medical": (2917, 1436),
        "surgical": (2260, 1192),
    }
    ids = [cell for site in sites.values() for cell in site.records.cells["record_id"]]
    assert len(set(ids)) == len(ids) == 8000
    with np.load(data / "physionet2012" / "set_a.npz") as raw:
        own = (raw["obs_record"] == 0) & (raw["obs_param"] == HR)
        values, unit = raw["obs_value"][own], int(raw["static"][0, 3])
        first = str(raw["record_id"][0])
    cells = sites[physionet2012.UNITS[unit]].records.cells
    row = list(cells["record_id"]).index(first)
    texts = [float(cells[f"HR_{summary}"][row]) for summary in ("first", "last", "lowest", "highest")]
    assert texts == [values[0], values[-1], values.min(), values.max()]
