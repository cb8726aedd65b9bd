"""IHDP: what a treatment does to 747 infants, with simulated outcomes, so that the truth is known.

Source: covariates and treatment from the Infant Health and Development Program, outcomes simulated by Hill,
Bayesian Nonparametric Modeling for Causal Inference, JCGS 2011 (setting A of the NPCI package), 50
realisations. Licence: not stated; keep it out of what is shipped. Protocol: Shalit, Johansson, Sontag, ICML
2017: 63 % of the infants train, 27 % validate, 10 % test, drawn as Louizos et al. (CEVAE, NeurIPS 2017) do;
root PEHE and the error of the average effect, mean over realisations.

`ihdp_npci_50.npz` holds the files ihdp_npci_1.csv to ihdp_npci_50.csv: `x` [747, 25] and `t` [747], alike in
all of them, and `yf`, `ycf`, `mu0`, `mu1` [50, 747]: the outcome that was seen, the one that was not, and
the means without and with treatment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Bool, Float, Int, Int8
from sklearn.model_selection import train_test_split

from clinimeta.common.errors import DataError
from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.arrays import Wanted, check_count, check_entries, read_arrays
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.cells import ArrayCells
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

PAGE = "https://github.com/claudiashi57/dragonnet/tree/master/dat/ihdp/csv (packed into one .npz file)"
FILE = PublicFile("ihdp", "ihdp_npci_50.npz", PAGE)
INFANTS, COVARIATES, REALISATIONS = 747, 25, 50
CONTINUOUS = 6
ONE_OR_TWO = 13
"""The covariate that is written 1 and 2; it becomes 0 and 1, as everybody else is."""
NAMES = tuple(f"x{number}" for number in range(1, COVARIATES + 1))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Truth:
    """What no real study knows: the unseen outcome and both means. For evaluation; no learner gets it."""

    counterfactual: Float[np.ndarray, " infants"]
    untreated: Float[np.ndarray, " infants"]
    treated: Float[np.ndarray, " infants"]

    @property
    def effect(self) -> Float[np.ndarray, " infants"]:
        """What the treatment does to each infant, on average over the noise."""
        effect: Float[np.ndarray, " infants"] = self.treated - self.untreated
        return effect


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Realisation:
    """One simulation of the trial: who was treated (1 or 0) and what was seen; `truth` apart.

    `covariates` 0 to 5 are continuous, the others 0 or 1.
    """

    covariates: Float[np.ndarray, "infants 25"]
    treatment: Int8[np.ndarray, " infants"]
    outcome: Float[np.ndarray, " infants"]
    truth: Truth


@dataclass(frozen=True, slots=True)
class Parts:
    """Which infants train, validate and test."""

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]


@DATASETS.register("ihdp")
@dataclass(frozen=True, slots=True)
class Ihdp:
    """Effect of a treatment on 747 infants (IHDP, simulated outcomes), each of `realisations` a site.

    The columns are `x1` to `x25`, `treatment` and the target `outcome`. Both potential outcomes are in
    `trials` only: they are for evaluation. A tenth of the infants are test rows.
    """

    realisations: Annotated[int, Ge(1), Le(REALISATIONS)] = REALISATIONS

    @property
    def synthetic(self) -> bool:
        """The outcomes are, the infants are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """The realisations "realisation-01" to "realisation-50", without their truth.

        Raises:
            MissingDataError: the file is missing.
            DataError: it is not what it should be.
        """
        return {name: _site(name, trial) for name, trial in self.trials(data).items()}

    def trials(self, data: Path | None) -> Mapping[str, Realisation]:
        """The realisations by name, with their truth; raises as `hospitals`."""
        return dict(list(read_trials(locate(FILE, data)).items())[: self.realisations])

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the file."""
        path = locate(FILE, data)
        return {path.name: digest(path)}


def read_trials(
    path: Path, infants: int = INFANTS, realisations: int = REALISATIONS
) -> dict[str, Realisation]:
    """All realisations of a file.

    Raises:
        DataError: another number of infants or realisations, or an entry that cannot be.
    """
    each = ("realisations", "infants")
    wanted = {
        "x": Wanted("f", ("infants", COVARIATES)),
        "t": Wanted("iu", ("infants",)),
        **{name: Wanted("f", each) for name in ("yf", "ycf", "mu0", "mu1")},
    }
    arrays = read_arrays(path, wanted, PAGE)
    check_count(path, "infants", len(arrays["t"]), infants, PAGE)
    check_count(path, "realisations", len(arrays["yf"]), realisations, PAGE)
    check_entries(path, "t", np.isin(arrays["t"], (0, 1)), "0 or 1", PAGE)
    for name in ("x", "yf", "ycf", "mu0", "mu1"):
        check_entries(path, name, np.isfinite(arrays[name]), "a finite number", PAGE)
    covariates = arrays["x"].astype(np.float64)
    covariates[:, ONE_OR_TWO] -= 1
    binary = np.isin(covariates, (0, 1)) | (np.arange(COVARIATES) < CONTINUOUS)
    check_entries(path, "x", binary, f"0 or 1 (1 or 2 in column {ONE_OR_TWO + 1})", PAGE)
    return {
        f"realisation-{number + 1:02d}": Realisation(
            covariates,
            arrays["t"].astype(np.int8),
            arrays["yf"][number],
            Truth(arrays["ycf"][number], arrays["mu0"][number], arrays["mu1"][number]),
        )
        for number in range(realisations)
    }


def parts(infants: int = INFANTS) -> Parts:
    """63, 27 and 10 % of the infants, the same in every realisation.

    >>> [len(part) for part in (parts().train, parts().validation, parts().test)]
    [470, 202, 75]
    """
    rest, test = train_test_split(np.arange(infants), test_size=0.1, random_state=1)
    train, validation = train_test_split(rest, test_size=0.3, random_state=1)
    return Parts(train, validation, test)


def root_pehe(estimate: Float[np.ndarray, " infants"], truth: Truth) -> float:
    """Root of the precision in estimating heterogeneous effects: sqrt(mean((effect - estimate)^2)).

    Raises:
        DataError: not one estimate an infant.
    """
    if estimate.shape != truth.effect.shape:
        raise DataError(
            "the estimates are not one an infant",
            found=f"{len(estimate)} estimates",
            expected=f"{len(truth.effect)}",
        )
    return float(np.sqrt(np.mean((truth.effect - estimate) ** 2)))


def _site(name: str, trial: Realisation) -> Hospital:
    treatment: list[str] = trial.treatment.astype(str).tolist()
    cells = ArrayCells(
        {"treatment": treatment},
        (*NAMES, "outcome"),
        np.column_stack([trial.covariates, trial.outcome]),
    )
    held: Bool[np.ndarray, " infants"] = np.isin(np.arange(len(treatment)), parts(len(treatment)).test)
    return Hospital(
        Records(f"IHDP {name} (infants, counted from 1)", cells, first_line=1), tuple(held.tolist())
    )
