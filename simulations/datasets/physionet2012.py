"""PhysioNet 2012: the first 48 hours of 8,000 stays in intensive care, as irregular as they were measured.

Source: Silva, Moody, Scott, Celi, Mark, Predicting in-hospital mortality of ICU patients: the PhysioNet /
Computing in Cardiology Challenge 2012 (ODC-By 1.0). Protocol: death in hospital, AUROC; the challenge
trained on set A and judged on set B, 4,000 stays each; Che et al. (GRU-D, Scientific Reports 2018) report
five folds whose assignment is not published. Four types of unit stand in for hospitals.

`set_a.npz` and `set_b.npz` hold the challenge's 8,000 text files: `record_id`, `static` (-1: missing) and
`outcome` a stay; `obs_record`, `obs_minute`, `obs_param` and `obs_value` a measurement, with `static_names`,
`param_names` and `outcome_names`. Nothing is imputed, averaged or cut here, not even what cannot be true.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.arrays import (
    Arrays,
    Wanted,
    check_count,
    check_entries,
    check_names,
    read_arrays,
)
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.cells import ArrayCells, written
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

PAGE = "https://physionet.org/content/challenge-2012/ (its text files packed into two .npz files)"
FILES = tuple(PublicFile("physionet2012", f"set_{name}.npz", PAGE) for name in ("a", "b"))
STAYS_A_SET = 4000
LAST_MINUTE = 48 * 60

UNITS = {1: "coronary", 2: "cardiac-surgery", 3: "medical", 4: "surgical"}
"""ICUType -> the site."""
STATIC = ("Age", "Gender", "Height", "ICUType", "Weight")
OUTCOMES = ("SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")
PARAMETERS = (
    *("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP", "FiO2"),
    *("GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg", "NIDiasABP", "NIMAP"),
    *("NISysABP", "Na", "PaCO2", "PaO2", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI"),
    *("TroponinT", "Urine", "WBC", "Weight", "pH"),
)
"""What is measured over time; the number of a measurement's parameter is its place here."""
SUMMARIES = ("first", "last", "lowest", "highest")
TARGET = "hospital_death"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Series:
    """What was measured in one stay, in the order of time; minutes count from admission."""

    minute: Int[np.ndarray, " measured"]
    parameter: Int[np.ndarray, " measured"]
    value: Float[np.ndarray, " measured"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stays:
    """Stays with their series; `static` is NaN where a value is missing, `outcome` -1.

    The measurements of stay i are those from `start[i]` to before `start[i + 1]`; some stays have none.
    """

    record_id: Int[np.ndarray, " stays"]
    static: Float[np.ndarray, "stays 5"]
    outcome: Int[np.ndarray, "stays 5"]
    start: Int[np.ndarray, " stays+1"]
    measured: Series

    def __len__(self) -> int:
        """The number of stays."""
        return len(self.record_id)

    def series(self, stay: int) -> Series:
        """What was measured in a stay."""
        part = slice(int(self.start[stay]), int(self.start[stay + 1]))
        every = self.measured
        return Series(every.minute[part], every.parameter[part], every.value[part])

    def take(self, stays: Int[np.ndarray, " taken"]) -> "Stays":
        """These stays, in this order."""
        counts = np.diff(self.start)[stays]
        rows = np.concatenate([np.arange(self.start[s], self.start[s + 1]) for s in stays] or [np.arange(0)])
        every = self.measured
        return Stays(
            self.record_id[stays],
            self.static[stays],
            self.outcome[stays],
            np.concatenate([[0], np.cumsum(counts)]),
            Series(every.minute[rows], every.parameter[rows], every.value[rows]),
        )

    @property
    def unit(self) -> Int[np.ndarray, " stays"]:
        """The type of each stay's unit, 1 to 4."""
        return self.static[:, STATIC.index("ICUType")].astype(np.int64)

    @property
    def death(self) -> Int[np.ndarray, " stays"]:
        """Who died in hospital: 1 or 0."""
        return self.outcome[:, OUTCOMES.index("In-hospital_death")]


@DATASETS.register("physionet2012")
@dataclass(frozen=True, slots=True)
class PhysioNet2012:
    """Death in hospital after 8,000 stays in intensive care (PhysioNet 2012), each type of unit a site.

    The target is `hospital_death`. The inputs are age, gender, height and weight at admission, and of each
    of 37 parameters the first, last, lowest and highest value; empty where nothing was measured. Set B are
    test rows. `stays` gives every measurement with its time.
    """

    @property
    def synthetic(self) -> bool:
        """These are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The units "coronary", "cardiac-surgery", "medical" and "surgical".

        Raises:
            MissingDataError: a file is missing.
            DataError: a file is not what it should be.
        """
        sets = self.stays(data)
        return {
            site: _site(site, [part.take(np.flatnonzero(part.unit == unit)) for part in sets])
            for unit, site in UNITS.items()
        }

    def stays(self, data: Path | None) -> tuple[Stays, Stays]:
        """Set A and set B, as they were measured; raises as `hospitals`."""
        first, second = (read_stays(locate(file, data)) for file in FILES)
        return first, second

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of both files."""
        paths = [locate(file, data) for file in FILES]
        return {path.name: digest(path) for path in paths}


def read_stays(path: Path, stays: int = STAYS_A_SET) -> Stays:
    """The stays of one file.

    Raises:
        DataError: another number of stays, other parameters, or an entry that cannot be.
    """
    arrays = read_arrays(path, WANTED, PAGE)
    names = {"static_names": STATIC, "outcome_names": OUTCOMES, "param_names": PARAMETERS}
    for name, expected in names.items():
        check_names(path, name, arrays[name], expected, PAGE)
    check_count(path, "stays", len(arrays["record_id"]), stays, PAGE)
    check_count(path, "different stays", len(np.unique(arrays["record_id"])), stays, PAGE)
    _check_entries(path, arrays, stays)
    static = arrays["static"].astype(np.float32)
    record, minute = arrays["obs_record"].astype(np.int64), arrays["obs_minute"].astype(np.int64)
    return Stays(
        arrays["record_id"].astype(np.int64),
        np.where(static == -1, np.float32(np.nan), static),
        arrays["outcome"].astype(np.int64),
        np.searchsorted(record, np.arange(stays + 1)),
        Series(minute, arrays["obs_param"].astype(np.int64), arrays["obs_value"]),
    )


WANTED: Mapping[str, Wanted] = {
    "record_id": Wanted("iu", ("stays",)),
    "static": Wanted("f", ("stays", len(STATIC))),
    "outcome": Wanted("iu", ("stays", len(OUTCOMES))),
    "obs_record": Wanted("iu", ("measurements",)),
    "obs_minute": Wanted("iu", ("measurements",)),
    "obs_param": Wanted("iu", ("measurements",)),
    "obs_value": Wanted("f", ("measurements",)),
    **{name: Wanted("U", (name,)) for name in ("static_names", "outcome_names", "param_names")},
}


def _check_entries(path: Path, arrays: Arrays, stays: int) -> None:
    static, outcome = arrays["static"], arrays["outcome"]
    check_entries(path, "static", np.isfinite(static), "a finite number, -1 where missing", PAGE, STATIC)
    unit = (np.arange(len(STATIC)) != STATIC.index("ICUType")) | np.isin(static, list(UNITS))
    check_entries(path, "static", unit, "1, 2, 3 or 4", PAGE, STATIC)
    death = (np.arange(len(OUTCOMES)) != OUTCOMES.index("In-hospital_death")) | np.isin(outcome, (0, 1))
    check_entries(path, "outcome", death, "0 or 1", PAGE, OUTCOMES)
    record, minute = arrays["obs_record"].astype(np.int64), arrays["obs_minute"].astype(np.int64)
    check_entries(path, "obs_record", (record >= 0) & (record < stays), "the place of a stay", PAGE)
    later = np.diff(record * (LAST_MINUTE + 1) + minute, prepend=0) >= 0
    check_entries(path, "obs_minute", (minute >= 0) & (minute <= LAST_MINUTE), f"0 to {LAST_MINUTE}", PAGE)
    check_entries(path, "obs_record", later, "stays in order, each in the order of time", PAGE)
    known = np.isin(arrays["obs_param"], np.arange(len(PARAMETERS)))
    check_entries(path, "obs_param", known, "the place of a parameter in param_names", PAGE)
    check_entries(path, "obs_value", np.isfinite(arrays["obs_value"]), "a finite number", PAGE)


def summaries(stays: Stays) -> Float[np.ndarray, "stays columns"]:
    """First, last, lowest and highest value of each parameter in turn; NaN where it was not measured."""
    found = np.full((len(stays), len(PARAMETERS), len(SUMMARIES)), np.nan, dtype=np.float32)
    of_stay = np.repeat(np.arange(len(stays)), np.diff(stays.start))
    parameter, value = stays.measured.parameter, stays.measured.value
    key = of_stay * len(PARAMETERS) + parameter
    order = np.argsort(key, kind="stable")
    keys, begin = np.unique(key[order], return_index=True)
    if len(keys):
        values = value[order]
        end = np.append(begin[1:], len(values)) - 1
        rows, columns = np.divmod(keys, len(PARAMETERS))
        found[rows, columns] = np.stack(
            [
                values[begin],
                values[end],
                np.minimum.reduceat(values, begin),
                np.maximum.reduceat(values, begin),
            ],
            axis=1,
        )
    return found.reshape(len(stays), len(PARAMETERS) * len(SUMMARIES))


def _site(site: str, sets: list[Stays]) -> Hospital:
    kept = [name for name in STATIC if name != "ICUType"]
    static = np.concatenate([part.static for part in sets])[:, [STATIC.index(name) for name in kept]]
    ready = {
        "record_id": [str(number) for part in sets for number in part.record_id],
        **{name.lower(): written(column) for name, column in zip(kept, static.T, strict=True)},
        TARGET: [str(death) for part in sets for death in part.death],
    }
    names = tuple(f"{parameter}_{summary}" for parameter in PARAMETERS for summary in SUMMARIES)
    cells = ArrayCells(ready, names, np.concatenate([summaries(part) for part in sets]))
    test = tuple(number > 0 for number, part in enumerate(sets) for _ in range(len(part)))
    return Hospital(Records(f"PhysioNet 2012 {site} (stays, counted from 1)", cells, first_line=1), test)
