"""Tox21 and SIDER: the published assays, splits and counts; whatever does not fit is refused by its place."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from public_files import SECRET, npz, present, refused, table

from clinimeta.common.errors import DataError, MissingDataError
from clinimeta.common.study import Evaluation
from clinimeta.simulations.datasets import molecules
from clinimeta.simulations.datasets.locate import digest
from clinimeta.simulations.datasets.molecules import Collection
from clinimeta.simulations.datasets.sider import SIDER, Sider
from clinimeta.simulations.datasets.tox21 import TOX21, Tox21
from clinimeta.simulations.federation import splits

TINY = Collection("tiny", 3, ("A", "B", "C"), judged=1)
CELLS = {"smiles": ["CCO", "C", "?"], "A": ["1", "0", "1"], "B": ["0.0", "", "1.0"], "C": ["", "", "0"]}
LABELS = np.array([[1, 0, -1], [0, -1, -1], [1, 1, 0]], dtype=np.int8)
BITS = np.zeros((3, 2048), dtype=np.uint8)
BITS[0, [0, 1030]] = 1
BITS[1, 2047] = 1


def packed(**changes: object) -> dict[str, object]:
    return {
        "fp_packed": np.packbits(BITS, axis=1),
        "y": LABELS,
        "tasks": np.array(TINY.assays),
        "parsed": np.array([True, True, False]),
    } | changes


def write(folder: Path, cells: Mapping[str, list[str]] = CELLS, **changes: object) -> Path:
    table(folder / "tiny.csv.gz", cells)
    npz(folder / "tiny_ecfp4_2048.npz", packed(**changes))
    return folder


def test_labels_and_fingerprints_are_those_of_the_files(tmp_path: Path) -> None:
    found = TINY.molecules_of(write(tmp_path))
    assert np.array_equal(found.fingerprints, BITS)
    assert np.array_equal(found.labels, LABELS)
    assert found.parsed.tolist() == [True, True, False]
    assert (found.training_assays, found.judged_assays) == (("A", "B"), ("C",))
    bits, labels = found.assay("B")
    assert np.array_equal(bits, BITS[[0, 2]])
    assert labels.tolist() == [0, 1]
    with pytest.raises(DataError) as caught:
        found.assay("D")
    assert caught.value.expected == "there is: A, B, C"


def test_an_assay_is_a_site_with_what_it_measured(tmp_path: Path) -> None:
    sites = TINY.molecules_of(write(tmp_path)).sites(1024)
    assert {name: len(site.records) for name, site in sites.items()} == {"A": 3, "B": 2, "C": 1}
    cells = sites["B"].records.cells
    assert (cells["smiles"], cells["active"]) == (["CCO", "?"], ["0", "1"])
    assert (cells["bit_0"], cells["bit_6"], cells["bit_7"]) == (["1", "0"], ["1", "0"], ["0", "0"])
    assert len(cells) == 1024 + 2


@pytest.mark.parametrize(
    ("cells", "where"),
    [
        ({**CELLS, "B": ["0.0", SECRET, "1.0"]}, "line 3, column 'B'"),
        ({**CELLS, "B": ["0.0", "-1", "1.0"]}, "line 3, column 'B'"),
        ({name: column for name, column in CELLS.items() if name != "C"}, "tiny.csv.gz"),
        ({name: column for name, column in CELLS.items() if name != "smiles"}, "tiny.csv.gz"),
        ({name: column[:2] for name, column in CELLS.items()}, "tiny.csv.gz"),
    ],
)
def test_a_wrong_table_is_refused_by_line_and_column(
    tmp_path: Path, cells: Mapping[str, list[str]], where: str
) -> None:
    write(tmp_path, cells)
    assert refused(lambda: TINY.molecules_of(tmp_path)).where.endswith(where)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"y": LABELS[[1, 0, 2]]}, "array 'y', row 1, column 'A'"),
        ({"tasks": np.array(["A", "C", "B"])}, "array 'tasks', row 2"),
        ({"fp_packed": np.packbits(BITS, axis=1)[:2]}, "array 'parsed'"),
        ({"fp_packed": np.packbits(BITS, axis=1)[:, :128]}, "array 'fp_packed'"),
        (
            {"fp_packed": np.zeros((2, 256), np.uint8), "y": LABELS[:2], "parsed": np.ones(2, bool)},
            "tiny_ecfp4_2048.npz",
        ),
    ],
)
def test_fingerprints_of_other_molecules_are_refused(
    tmp_path: Path, changes: dict[str, object], where: str
) -> None:
    write(tmp_path, **changes)
    error = refused(lambda: TINY.molecules_of(tmp_path))
    assert where in error.where
    assert "RDKit" in error.remedy


def test_without_the_file_rdkit_makes_the_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "tiny.csv.gz", CELLS)
    asked: list[tuple[str, ...]] = []

    def made(smiles: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        asked.append(smiles)
        return BITS, np.ones(3, dtype=bool)

    monkeypatch.setattr(molecules, "rdkit_is_there", lambda: True)
    monkeypatch.setattr(molecules, "ecfp", made)
    assert np.array_equal(TINY.molecules_of(tmp_path).fingerprints, BITS)
    assert asked == [("CCO", "C", "?")]
    assert list(TINY.files(tmp_path)) == ["tiny.csv.gz"]
    write(tmp_path)
    TINY.molecules_of(tmp_path)
    assert len(asked) == 1, "the file is taken where it is there"
    assert TINY.files(tmp_path) == {path.name: digest(path) for path in tmp_path.iterdir()}


def test_without_the_file_and_rdkit_both_remedies_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    table(tmp_path / "tiny.csv.gz", CELLS)
    with pytest.raises(MissingDataError, match="tiny_ecfp4_2048") as caught:
        TINY.molecules_of(tmp_path)
    assert "clinimeta[chem]" in caught.value.remedy
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize(("dataset", "name", "judged"), [(Tox21, "tox21", 3), (Sider, "sider", 6)])
@pytest.mark.data
def test_the_last_sites_are_the_assays_that_are_judged(
    data_dir: Path, dataset: type[Tox21 | Sider], name: str, judged: int
) -> None:
    data = present(data_dir, "drug_discovery")
    every, sites = dataset(bits=128).molecules(data), dataset(bits=128).hospitals(data)
    split = splits(Evaluation(name="published", split="unseen_sites", sites=judged), list(sites))[0]
    assert (split.train, split.judged) == (every.training_assays, every.judged_assays)
    assert (len(split.train), len(split.judged)) == ((9, 3) if name == "tox21" else (21, 6))
    assert len(dataset().files(data)) == 2


@pytest.mark.data
def test_tox21_has_the_published_negatives_and_positives(data_dir: Path) -> None:
    every = Tox21().molecules(present(data_dir, "drug_discovery"))
    assert every.fingerprints.shape == (7831, 2048)
    assert int((~every.parsed).sum()) == 8
    assert not every.fingerprints[~every.parsed].any()
    counts = {name: np.bincount(every.assay(name)[1]).tolist() for name in every.assays}
    assert counts == {  # n_samples in the code of PAR
        "NR-AR": [6956, 309],
        "NR-AR-LBD": [6521, 237],
        "NR-AhR": [5781, 768],
        "NR-Aromatase": [5521, 300],
        "NR-ER": [5400, 793],
        "NR-ER-LBD": [6605, 350],
        "NR-PPAR-gamma": [6264, 186],
        "SR-ARE": [4890, 942],
        "SR-ATAD5": [6808, 264],
        "SR-HSE": [6095, 372],
        "SR-MMP": [4892, 918],
        "SR-p53": [6351, 423],
    }


@pytest.mark.data
def test_sider_has_every_label(data_dir: Path) -> None:
    every = Sider().molecules(present(data_dir, "drug_discovery"))
    assert every.labels.shape == (1427, 27)
    assert set(np.unique(every.labels)) == {0, 1}
    positives = (every.labels == 1).sum(axis=0).tolist()
    assert positives[:4] == [743, 996, 22, 876]
    assert positives[-1] == 946
    assert every.parsed.all()


@pytest.mark.data
@pytest.mark.parametrize("collection", [TOX21, SIDER], ids=lambda collection: collection.name)
def test_rdkit_makes_the_fingerprints_of_the_file(data_dir: Path, collection: Collection) -> None:
    pytest.importorskip("rdkit", reason="the extra `chem` is not installed")
    every = collection.molecules_of(present(data_dir, "drug_discovery"))
    some = slice(0, 700)
    bits, parsed = molecules.ecfp(every.smiles[some])
    assert np.array_equal(bits, every.fingerprints[some])
    assert np.array_equal(parsed, every.parsed[some])


def test_rdkit_folds_as_we_do() -> None:
    pytest.importorskip("rdkit", reason="the extra `chem` is not installed")
    smiles = ("CC(=O)Nc1ccc(O)cc1", "OCC(O)CO", "no molecule")
    long, parsed = molecules.ecfp(smiles)
    labels = np.zeros((3, 1), dtype=np.int8)
    folded = molecules.Molecules(smiles, long, parsed, labels, ("A",), 1).folded(256)
    from rdkit.Chem import MolFromSmiles, rdFingerprintGenerator

    maker = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=256)
    short = [maker.GetFingerprintAsNumPy(MolFromSmiles(text)) for text in smiles[:2]]
    assert np.array_equal(folded[:2], short)
    assert (parsed.tolist(), folded[2].any()) == ([True, True, False], False)


def test_the_collections_are_as_long_as_published() -> None:
    assert (len(TOX21.assays), len(set(TOX21.assays)), TOX21.molecules) == (12, 12, 7831)
    assert (len(SIDER.assays), len(set(SIDER.assays)), SIDER.molecules) == (27, 27, 1427)
