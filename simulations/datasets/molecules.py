"""Molecules with several assays each, and few-shot tasks made of them: what Tox21 and SIDER share.

Tables: MoleculeNet (Wu et al., Chemical Science 2018), `NAME.csv.gz`, a molecule a line, an assay a column,
empty where it was not measured. Fingerprints: ECFP4 of 2,048 bits (Rogers and Hahn 2010; RDKit's Morgan
fingerprint, radius 2), packed into `NAME_ecfp4_2048.npz`, or, where that file is absent, made by RDKit (the
extra `chem`); a test holds the two equal.

Protocol: Guo et al., Meta-MGNN, WWW 2021, and Wang et al., PAR, NeurIPS 2021: an assay is a task, the first
assays train and the last are judged, in the table's order. So a study's `unseen_sites` with as many `sites`
as are judged is the published split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int8, UInt8

from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.errors import DataError, MissingDataError, nearest
from clinimeta.common.tasks.table import Records, describe_cell
from clinimeta.simulations.datasets.arrays import Wanted, check_count, check_entries, check_names, read_arrays
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.datasets.cells import ArrayCells
from clinimeta.simulations.datasets.locate import PublicFile, digest, locate

FOLDER, PAGE = "drug_discovery", "https://moleculenet.org/datasets-1"
PACKED_PAGE = "where you got it, or remove it and let RDKit make the fingerprints"
BITS, RADIUS = 2048, 2
UNMEASURED = -1
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": UNMEASURED}
TARGET = "active"


@dataclass(frozen=True, slots=True)
class Collection:
    """A table of MoleculeNet: its file's name, its assays in order, how many of the last are judged."""

    name: str
    molecules: int
    assays: tuple[str, ...]
    judged: int

    def molecules_of(self, data: Path | None) -> "Molecules":
        """Read the table and its fingerprints.

        Raises:
            MissingDataError: the table is missing, or the fingerprints are and RDKit is not installed.
            DataError: a file is not what it should be, or the two are not of the same molecules.
        """
        path = locate(self._table, data)
        table = read_csv(path)
        check_count(path, "molecules", len(table), self.molecules, PAGE)
        labels = np.stack([_labels(table, assay) for assay in self.assays], axis=1)
        smiles = tuple(_column(table, "smiles"))
        packed = self._packed(data)
        bits, parsed = _shipped(packed, self.assays, labels) if packed else ecfp(smiles)
        return Molecules(smiles, bits, parsed, labels, self.assays, self.judged)

    def files(self, data: Path | None) -> dict[str, str]:
        """SHA-256 of the table, and of the fingerprints where they are not made here."""
        paths = [locate(self._table, data), self._packed(data)]
        return {path.name: digest(path) for path in paths if path}

    @property
    def _table(self) -> PublicFile:
        return PublicFile(FOLDER, f"{self.name}.csv.gz", PAGE)

    def _packed(self, data: Path | None) -> Path | None:
        """The file of fingerprints, or None where RDKit can replace it."""
        file = PublicFile(FOLDER, f"{self.name}_ecfp4_2048.npz", PACKED_PAGE)
        try:
            return locate(file, data)
        except MissingDataError as missing:
            if rdkit_is_there():
                return None
            raise MissingDataError(
                missing.what,
                where=missing.where,
                expected="the file, or RDKit to make the fingerprints from the table",
                remedy="pip install 'clinimeta[chem]', or put the file beside the table",
            ) from None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Molecules:
    """Molecules with what was measured: `labels` are 1 (active), 0, or -1 (not measured).

    Where `parsed` is False RDKit could not read the SMILES, and the fingerprint is all 0.
    """

    smiles: tuple[str, ...]
    fingerprints: UInt8[np.ndarray, "molecules bits"]
    parsed: Bool[np.ndarray, " molecules"]
    labels: Int8[np.ndarray, "molecules assays"]
    assays: tuple[str, ...]
    judged: int

    @property
    def training_assays(self) -> tuple[str, ...]:
        """The assays of meta-training, in order."""
        return self.assays[: -self.judged]

    @property
    def judged_assays(self) -> tuple[str, ...]:
        """The assays of meta-testing, in order."""
        return self.assays[-self.judged :]

    def assay(self, name: str) -> tuple[UInt8[np.ndarray, "measured bits"], Int8[np.ndarray, " measured"]]:
        """Fingerprints and labels of the molecules that this assay measured.

        Raises:
            DataError: there is no such assay.
        """
        if name not in self.assays:
            raise DataError(f"there is no assay '{name}'", expected=nearest(name, self.assays))
        labels = self.labels[:, self.assays.index(name)]
        measured = labels != UNMEASURED
        return self.fingerprints[measured], labels[measured]

    def folded(self, bits: int) -> UInt8[np.ndarray, "molecules bits"]:
        """Shorter fingerprints: a bit is 1 where one of those that fall on it is (as RDKit folds them)."""
        parts = self.fingerprints.reshape(len(self.fingerprints), -1, bits)
        folded: UInt8[np.ndarray, "molecules bits"] = parts.max(axis=1)
        return folded

    def sites(self, bits: int) -> dict[str, Hospital]:
        """Every assay as a site: columns `smiles`, `bit_0`, `bit_1`, ... and `active` ("0" or "1")."""
        folded, names = self.folded(bits), tuple(f"bit_{bit}" for bit in range(bits))
        smiles = np.array(self.smiles, dtype=object)
        return {
            assay: Hospital(
                Records(
                    f"assay {assay} (its molecules, counted from 1)",
                    ArrayCells(
                        {"smiles": smiles[kept].tolist(), TARGET: labels[kept].astype(str).tolist()},
                        names,
                        folded[kept],
                    ),
                    first_line=1,
                )
            )
            for assay, labels in zip(self.assays, self.labels.T, strict=True)
            for kept in [labels != UNMEASURED]
        }


def rdkit_is_there() -> bool:
    """Whether RDKit (the extra `chem`) is installed."""
    try:
        import rdkit  # noqa: F401
    except ImportError:
        return False
    return True


def ecfp(smiles: Sequence[str]) -> tuple[UInt8[np.ndarray, "molecules 2048"], Bool[np.ndarray, " molecules"]]:
    """ECFP4 fingerprints by RDKit, and which SMILES it could read; the others' bits are all 0."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdFingerprintGenerator

    maker = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    bits = np.zeros((len(smiles), BITS), dtype=np.uint8)
    parsed = np.zeros(len(smiles), dtype=bool)
    with rdBase.BlockLogs():
        for row, text in enumerate(smiles):
            molecule = Chem.MolFromSmiles(text)
            if molecule is not None:
                bits[row], parsed[row] = maker.GetFingerprintAsNumPy(molecule), True
    return bits, parsed


def _shipped(
    path: Path, assays: tuple[str, ...], labels: Int8[np.ndarray, "molecules assays"]
) -> tuple[UInt8[np.ndarray, "molecules 2048"], Bool[np.ndarray, " molecules"]]:
    wanted: Mapping[str, Wanted] = {
        "fp_packed": Wanted("u", ("molecules", BITS // 8)),
        "parsed": Wanted("b", ("molecules",)),
        "y": Wanted("i", ("molecules", "assays")),
        "tasks": Wanted("U", ("assays",)),
    }
    arrays = read_arrays(path, wanted, PACKED_PAGE)
    check_names(path, "tasks", arrays["tasks"], assays, PACKED_PAGE)
    check_count(path, "molecules", len(arrays["y"]), len(labels), PACKED_PAGE)
    check_entries(path, "y", arrays["y"] == labels, "the table's label of this molecule", PACKED_PAGE, assays)
    packed = arrays["fp_packed"].astype(np.uint8, copy=False)
    return np.unpackbits(packed, axis=1), arrays["parsed"]


def _labels(table: Records, assay: str) -> Int8[np.ndarray, " molecules"]:
    cells = _column(table, assay)
    for row, cell in enumerate(cells):
        if cell.strip() not in LABELS:
            raise DataError(
                f"a cell in column '{assay}' cannot be used",
                where=f"{table.where}, {table.place(row)}, column '{assay}'",
                found=describe_cell(cell),
                expected="0, 1, or nothing where it was not measured",
                remedy=f"get the table again from {PAGE}",
            )
    return np.array([LABELS[cell.strip()] for cell in cells], dtype=np.int8)


def _column(table: Records, name: str) -> Sequence[str]:
    if name not in table.cells:
        raise DataError(
            f"the column '{name}' is missing",
            where=table.where,
            expected=nearest(name, table.cells),
            remedy=f"get the table again from {PAGE}",
        )
    return table.cells[name]
