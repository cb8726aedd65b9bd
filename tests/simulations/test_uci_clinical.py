"""The 25 clinical tables: each a task with a schema that fits it, counted as the index says."""

import csv
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from public_files import SECRET, present, refused, table

from clinimeta.common.errors import MissingDataError, StudyError
from clinimeta.common.tasks.table import encode
from clinimeta.simulations.datasets import uci_clinical
from clinimeta.simulations.datasets.locate import digest
from clinimeta.simulations.datasets.uci_clinical import (
    CAUTIONS,
    PIMA_ZEROS,
    Disease,
    Entry,
    UciClinical,
    read_disease,
    read_index,
)

CELLS = {
    "age": ["63", "41", "?"],
    "sex": ["F", "M", ""],
    "always": ["t", "t", ""],
    "time": ["1", "0", "0"],
    "target": ["b", "a", "b"],
}


def entry(name: str = "gout", **changes: object) -> Entry:
    said = {"name": name, "n": 3, "n_features": 4, "classes": {"a": 1, "b": 2}, "description": "gout"}
    return Entry.model_validate(said | changes)


def test_a_table_becomes_a_task_with_the_columns_it_has(tmp_path: Path) -> None:
    path = table(tmp_path / "gout.csv.gz", CELLS)
    disease = read_disease(path, entry())
    assert disease.schema.classes == ("a", "b")
    kinds = {column.name: (column.kind, column.levels) for column in disease.schema.columns}
    assert kinds == {"age": ("numeric", ()), "sex": ("categorical", ("F", "M")), "time": ("numeric", ())}
    assert set(disease.records.cells) == set(CELLS)
    encoded = encode(disease.schema, disease.records)
    assert encoded.rows.targets.tolist() == [1, 0, 1]
    assert encoded.rows.inputs["present"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1]]


def test_what_tells_the_outcome_is_no_input(tmp_path: Path) -> None:
    path = table(tmp_path / "heart_failure.csv.gz", CELLS)
    disease = read_disease(path, entry("heart_failure"))
    assert [column.name for column in disease.schema.columns] == ["age", "sex"]
    assert "time" in disease.caution


def test_zeros_that_mean_missing_become_empty_and_no_others(tmp_path: Path) -> None:
    cells = {"glucose": ["0", "120", "0.0"], "pregnancies": ["0", "1", "2"], "target": ["b", "a", "b"]}
    cells |= {name: ["0", "1", "2"] for name in PIMA_ZEROS if name != "glucose"}
    path = table(tmp_path / "pima_diabetes.csv.gz", cells | {"target": cells.pop("target")})
    found = read_disease(path, entry("pima_diabetes", n_features=6)).records.cells
    assert list(found["glucose"]) == ["", "120", ""]
    assert list(found["bmi"]) == ["", "1", "2"]
    assert list(found["pregnancies"]) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"target": ["b", SECRET, "b"]}, "line 3, column 'target'"),
        ({"target": ["b", "", "b"]}, "line 3, column 'target'"),
        ({"target": ["b", "a", "a"]}, "column 'target'"),
        ({"age": ["63", f"no{SECRET}", "41"]}, "line 3, column 'age'"),
        ({"more": ["1", "2", "3"]}, "line 1"),
    ],
)
def test_a_table_that_is_not_as_the_index_says_is_refused(
    tmp_path: Path, changes: dict[str, list[str]], where: str
) -> None:
    path = table(tmp_path / "gout.csv.gz", CELLS | changes)
    assert refused(lambda: read_disease(path, entry())).where.endswith(where)


@pytest.mark.parametrize(("key", "said"), [("n", "3 rows"), ("n_features", "4 features")])
def test_another_number_of_rows_or_features_is_refused(tmp_path: Path, key: str, said: str) -> None:
    path = table(tmp_path / "gout.csv.gz", CELLS)
    assert refused(lambda: read_disease(path, entry(**{key: 9}))).found == said


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", "index.json"),
        ("[1]", "index.json"),
        ('[{"name": "gout"}]', "table 1"),
        ('[{"name": "../gout", "n": 1, "n_features": 1, "classes": {}, "description": ""}]', "table 1"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(text)
    error = refused(lambda: read_index(path))
    assert error.what == "the index of the tables cannot be read"
    assert error.where.endswith(where)


def test_an_index_of_other_tables_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps([entry().model_dump()]))
    assert refused(lambda: read_index(path)).found == "1 tables"
    path.write_text(json.dumps([entry().model_dump()] * 2))
    assert refused(lambda: read_index(path, 1)).found == "2 entries"
    assert [one.name for one in read_index_of(path, "b", "a")] == ["a", "b"]
    with pytest.raises(MissingDataError, match=r"index\.json"):
        UciClinical().hospitals(tmp_path / "elsewhere")


def test_a_disease_is_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uci_clinical, "read_index", lambda path: read_index(path, 2))
    read_index_of(tmp_path / "index.json", "gout", "asthma")
    for name in ("gout", "asthma"):
        table(tmp_path / f"{name}.csv.gz", CELLS)
    sites = UciClinical().hospitals(tmp_path)
    targets = {name: site.records.cells["target"] for name, site in sites.items()}
    assert targets == {"asthma": ["1", "0", "1"], "gout": ["1", "0", "1"]}
    assert list(sites["gout"].records.cells["sex"]) == CELLS["sex"]
    assert list(UciClinical(("gout",)).hospitals(tmp_path)) == ["gout"]
    assert set(UciClinical(("gout",)).files(tmp_path)) == {"index.json", "gout.csv.gz"}
    with pytest.raises(StudyError, match="'guot'") as caught:
        UciClinical(("guot",)).hospitals(tmp_path)
    assert "did you mean 'gout'?" in caught.value.expected
    assert set(UciClinical().files(tmp_path)) == {"index.json", "asthma.csv.gz", "gout.csv.gz"}
    (tmp_path / "gout.csv.gz").unlink()
    with pytest.raises(MissingDataError, match=r"gout\.csv\.gz"):
        UciClinical().hospitals(tmp_path)


def read_index_of(path: Path, *names: str) -> list[Entry]:
    path.write_text(json.dumps([entry(name).model_dump() for name in names]))
    return read_index(path, len(names))


@pytest.fixture(scope="module")
def diseases(data_dir: Path) -> Mapping[str, Disease]:
    return UciClinical().diseases(present(data_dir, "uci_clinical"))


@pytest.mark.data
def test_every_table_encodes_by_its_own_schema(diseases: Mapping[str, Disease]) -> None:
    assert len(diseases) == 25
    assert list(diseases) == sorted(diseases)
    assert set(CAUTIONS) <= set(diseases)
    for disease in diseases.values():
        encoded = encode(disease.schema, disease.records)
        assert bool(torch.isfinite(encoded.rows.inputs["table"]).all())
        assert len(encoded.rows.targets.unique()) == len(disease.schema.classes)
    assert sum(len(disease.records) for disease in diseases.values()) == 16_045
    assert len(diseases["arrhythmia"].records.cells) == 280


@pytest.mark.data
def test_the_cells_are_those_of_the_files_but_for_what_is_said(
    data_dir: Path, diseases: Mapping[str, Disease]
) -> None:
    data = present(data_dir, "uci_clinical")
    files = UciClinical().files(data)
    changed: dict[str, int] = {}
    for name, disease in diseases.items():
        path = data / "uci_clinical" / f"{name}.csv.gz"
        assert files[path.name] == digest(path)
        header, *rows = csv.reader(gzip.decompress(path.read_bytes()).decode().splitlines())
        assert list(disease.records.cells) == header
        for column, cells in zip(header, zip(*rows, strict=True), strict=True):
            found = disease.records.cells[column]
            differing = [new for new, old in zip(found, cells, strict=True) if new != old]
            assert set(differing) <= {""}
            if differing:
                changed[f"{name}.{column}"] = len(differing)
    assert changed == {  # the Pima zeros as the literature counts them, and one damaged cell
        "appendicitis.V2": 1,
        "pima_diabetes.glucose": 5,
        "pima_diabetes.blood_pressure": 35,
        "pima_diabetes.skin_thickness": 227,
        "pima_diabetes.insulin": 374,
        "pima_diabetes.bmi": 11,
    }
    assert len(files) == 26


@pytest.mark.data
def test_sick_euthyroid_has_the_people_of_hypothyroid(diseases: Mapping[str, Disease]) -> None:
    one, other = (diseases[name].records.cells for name in ("hypothyroid", "sick_euthyroid"))
    assert all(one[column] == other[column] for column in one if column != "target")
    assert "hypothyroid" in CAUTIONS["sick_euthyroid"]
