"""UCI Heart Disease: four hospitals of 1988, prepared and split as FLamby's Fed-Heart-Disease does.

Source: Janosi, Steinbrunn, Pfisterer, Detrano, UCI Machine Learning Repository (CC BY 4.0). Protocol:
du Terrail et al., FLamby, NeurIPS 2022 Datasets and Benchmarks.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"
PAGE = "https://archive.ics.uci.edu/dataset/45/heart+disease"

COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
)
DROPPED = ("slope", "ca", "thal")  # mostly missing outside Cleveland

FILES = {
    "cleveland": (
        "processed.cleveland.data",
        "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    ),
    "hungary": (
        "processed.hungarian.data",
        "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    ),
    "switzerland": (
        "processed.switzerland.data",
        "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    ),
    "long_beach": (
        "processed.va.data",
        "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
    ),
}
"""Hospital -> name and SHA-256 of its file, in FLamby's order (center 0 to 3)."""


@DATASETS.register("heart_disease")
@dataclass(frozen=True, slots=True)
class HeartDisease:
    """Heart disease at four hospitals (UCI, 740 complete rows), with FLamby's own test rows.

    The target `disease` is 1 where the vessels are narrowed (num > 0). `url` is the folder at the original
    source; whatever it serves must have the files' known checksums.
    """

    url: str = UCI

    @property
    def synthetic(self) -> bool:
        """These are people."""
        return False

    def hospitals(self, data: Path | None) -> Mapping[str, Hospital]:
        """Cleveland, Hungary, Switzerland and Long Beach; `test` marks FLamby's test fold.

        Raises:
            MissingDataError: a file is neither there nor downloadable.
            DataError: a file is not the original.
        """
        return {name: _hospital(locate(self._file(name), data)) for name in FILES}

    def files(self, data: Path | None) -> Mapping[str, str]:
        """SHA-256 of the four files."""
        paths = [locate(self._file(name), data) for name in FILES]
        return {path.name: digest(path) for path in paths}

    def _file(self, hospital: str) -> PublicFile:
        name, sha256 = FILES[hospital]
        return PublicFile("heart_disease", name, PAGE, sha256, f"{self.url}/{name}")


def _hospital(path: Path) -> Hospital:
    """One file's complete rows. Its checksum is known, so its shape is."""
    with path.open(newline="", encoding="ascii") as lines:
        rows = [dict(zip(COLUMNS, cells, strict=True)) for cells in csv.reader(lines)]
    kept = [name for name in COLUMNS if name not in (*DROPPED, "num")]
    complete = [row for row in rows if "?" not in [row[name] for name in (*kept, "num")]]
    cells: dict[str, Sequence[str]] = {name: [row[name] for row in complete] for name in kept}
    cells["disease"] = ["1" if float(row["num"]) > 0 else "0" for row in complete]
    records = Records(f"{path.name} (complete rows, counted from 1)", cells, first_line=1)
    return Hospital(records, held_out(cells["disease"]))


def held_out(targets: Sequence[str]) -> tuple[bool, ...]:
    """Which rows FLamby tests on: a third, alike in both classes where both have more than two rows."""
    sick = np.array([target == "1" for target in targets])
    both = min(sick.sum(), len(sick) - sick.sum()) > 2
    _, test = train_test_split(
        np.arange(len(sick)),
        test_size=1 - 0.66,
        train_size=0.66,
        random_state=43,
        shuffle=True,
        stratify=sick if both else None,
    )
    held = set(test.tolist())
    return tuple(row in held for row in range(len(sick)))
