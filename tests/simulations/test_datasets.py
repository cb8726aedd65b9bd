"""Each data set gives the hospitals that its README promises, and says clearly when it cannot."""

import csv
import gzip
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from clinimeta.common.errors import DataError, MissingDataError, StudyError
from clinimeta.common.study import Study, read_study
from clinimeta.common.tasks.table import encode
from clinimeta.simulations import studies
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Dataset, Hospital
from clinimeta.simulations.datasets.csv_folder import CsvFolder
from clinimeta.simulations.datasets.eicu import FLAGS, PHYSIOLOGY, Eicu
from clinimeta.simulations.datasets.heart_disease import COLUMNS, FILES, HeartDisease, held_out
from clinimeta.simulations.datasets.locate import digest


@pytest.fixture(autouse=True)
def _no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows_of(path: Path) -> list[dict[str, str]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def shipped(name: str) -> Study:
    return read_study(studies.text_of(name), name)


# Every data set


@pytest.mark.parametrize("name", sorted({*DATASETS.names()} - {"synthetic"}))
def test_a_data_set_is_found_by_name(name: str) -> None:
    dataset: Dataset = DATASETS.build(name, {})
    assert isinstance(dataset, Dataset)
    assert not dataset.synthetic
    assert DATASETS.summary(name)
    with pytest.raises(MissingDataError):
        dataset.hospitals(Path("/nowhere"))
    with pytest.raises(MissingDataError):
        dataset.files(Path("/nowhere"))


# Heart disease


@pytest.mark.data
def test_heart_disease_gives_flambys_rows_in_flambys_folds(data_dir: Path) -> None:
    hospitals = HeartDisease().hospitals(data_dir)
    published = rows_of(data_dir / "heart_disease" / "flamby_split.csv")
    assert sum(len(hospital.records) for hospital in hospitals.values()) == len(published) == 740
    for center, (name, (file, _)) in enumerate(FILES.items()):
        with (data_dir / "heart_disease" / file).open(newline="") as lines:
            raw = list(csv.reader(lines))
        wanted = [row for row in published if row["center"] == str(center)]
        assert {file} == {f"processed.{row['hospital']}.data" for row in wanted}
        original = [raw[int(row["row_in_file"])] for row in wanted]
        cells = hospitals[name].records.cells
        for column, text in cells.items():
            if column != "disease":
                assert list(text) == [row[COLUMNS.index(column)] for row in original]
        assert [cell == "1" for cell in cells["disease"]] == [float(row[-1]) > 0 for row in original]
        assert hospitals[name].test is not None
        assert list(hospitals[name].test or ()) == [row["fold"] == "test" for row in wanted]


@pytest.mark.data
def test_heart_disease_has_the_promised_sizes_and_thirteen_features(data_dir: Path) -> None:
    study = shipped("heart-disease")
    hospitals = DATASETS.build(study.data.name, study.data.options).hospitals(data_dir)
    tables = {name: encode(study.table, h.records, test=h.test) for name, h in hospitals.items()}
    assert len(study.table.features) == 13
    sizes = {name: (len(table.training), int(table.test.sum())) for name, table in tables.items()}
    assert sizes == {
        "cleveland": (199, 104),
        "hungary": (172, 89),
        "switzerland": (30, 16),
        "long_beach": (85, 45),
    }
    sick = {name: round(100 * float(t.rows.targets.float().mean()), 1) for name, t in tables.items()}
    assert sick == {"cleveland": 45.9, "hungary": 37.5, "switzerland": 97.8, "long_beach": 77.7}


@pytest.mark.data
def test_heart_disease_standardises_with_the_training_rows_of_each_hospital(data_dir: Path) -> None:
    study = shipped("heart-disease")
    hospital = HeartDisease().hospitals(data_dir)["cleveland"]
    inputs = encode(study.table, hospital.records, test=hospital.test).training.rows.inputs["table"].numpy()
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0, ddof=1), 1, atol=1e-5)


@pytest.mark.data
def test_heart_disease_names_the_files_it_read(data_dir: Path) -> None:
    assert HeartDisease().files(data_dir) == dict(FILES.values())
    assert HeartDisease().files(data_dir / "heart_disease") == HeartDisease().files(data_dir)


@pytest.mark.data
def test_heart_disease_refuses_an_edited_file(data_dir: Path, tmp_path: Path) -> None:
    for name, _ in FILES.values():
        shutil.copyfile(data_dir / "heart_disease" / name, tmp_path / name)
    with (tmp_path / "processed.va.data").open("a") as out:
        out.write("\n")
    with pytest.raises(DataError, match=r"processed\.va\.data"):
        HeartDisease().hospitals(tmp_path)


def test_heart_disease_comes_from_uci_and_nowhere_else() -> None:
    assert DATASETS.options("heart_disease") == {
        "url": "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"
    }


@pytest.mark.parametrize("sick", [2, 3])
def test_the_test_fold_is_alike_in_both_classes_where_it_can_be(sick: int) -> None:
    targets = ["1"] * sick + ["0"] * 47
    fold = held_out(targets)
    assert sum(fold) == round(0.34 * len(targets))
    assert fold == held_out(targets)
    if sick > 2:
        assert sum(held for held, target in zip(fold, targets, strict=True) if target == "1") == 1


@pytest.mark.data
def test_the_benchmark_rows_are_those_that_flamby_published(data_dir: Path) -> None:
    published = rows_of(data_dir / "heart_disease" / "flamby_published_results.csv")
    figures = {(row["method"], row["test_set"]): float(row["mean"]) for row in published}
    names = {"Pooled": "Pooled Training"}
    names |= {
        m: f"{m}100" for m in ("FedAvg", "FedProx", "Scaffold", "Cyclic", "FedAdam", "FedYogi", "FedAdagrad")
    }
    ours = {
        row.method: row.values for row in shipped("heart-disease").published if row.evaluation == "flamby"
    }
    for method, values in ours.items():
        if len(values) > 1:
            mean = np.mean([values[hospital] for hospital in FILES])
            assert values["mean"] == pytest.approx(mean, abs=6e-4)
        for center, hospital in enumerate(FILES):
            theirs = f"Local {center}" if method == "Local (own hospital)" else names.get(method)
            if theirs:
                assert values[hospital] == figures[theirs, f"center_{center}"]
    assert {"FENDA-FL", "PerFCL", "MOON", "FedPer", "FedAvg + local fine-tuning"} < set(ours)


# eICU


def physionet(folder: Path, **changes: Mapping[str, str]) -> Path:
    """PhysioNet's three tables in small: stays 1 to 4, all in the cohort but for `changes` to the last."""
    stays = {
        name: {
            "patient": {"gender": "Male", "age": "61", "hospitalid": "9", "unitvisitnumber": "1"}
            | {"hospitaldischargestatus": "Alive", "uniquepid": f"002-{name}"},
            "aps": {**dict.fromkeys(PHYSIOLOGY, "7"), "ph": "-1.0000"},
            "pred": {**dict.fromkeys(FLAGS, "0"), "electivesurgery": "", "diedinhospital": "0"},
        }
        for name in ("1", "2", "3", "4")
    }
    stays["1"]["patient"] |= {"hospitalid": "59", "age": "> 89", "gender": "Female"}
    stays["2"]["patient"] |= {"hospitalid": "107", "hospitaldischargestatus": "Expired", "gender": "Other"}
    for table, cells in changes.items():
        stays["4"][table] |= cells
    files = {"patient": "patient.csv.gz", "aps": "apacheApsVar.csv.gz", "pred": "apachePredVar.csv.gz"}
    for table, file in files.items():
        rows = [{"patientunitstayid": stay, **parts[table]} for stay, parts in stays.items()]
        rows = [row for row in rows if "absent" not in row]
        with gzip.open(folder / file, "wt", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def stays_of(hospitals: Mapping[str, Hospital]) -> dict[str, list[str]]:
    return {name: list(h.records.cells["patientunitstayid"]) for name, h in hospitals.items()}


def test_eicu_joins_the_tables_by_stay_and_names_hospitals_in_order(tmp_path: Path) -> None:
    hospitals = Eicu().hospitals(physionet(tmp_path))
    assert stays_of(hospitals) == {"hospital-9": ["3", "4"], "hospital-59": ["1"], "hospital-107": ["2"]}
    assert list(hospitals) == ["hospital-9", "hospital-59", "hospital-107"]


def test_eicu_marks_what_is_unknown_as_missing(tmp_path: Path) -> None:
    hospitals = Eicu().hospitals(physionet(tmp_path))
    oldest, dead = hospitals["hospital-59"].records.cells, hospitals["hospital-107"].records.cells
    assert (oldest["age_years"], oldest["gender"], oldest["ph"], oldest["urine"]) == (
        ["90"],
        ["Female"],
        [""],
        ["7"],
    )
    assert (dead["gender"], dead["electivesurgery"], dead["hospital_death"]) == ([""], [""], ["1"])


@pytest.mark.parametrize(
    "changes",
    [
        {"patient": {"unitvisitnumber": "2"}},
        {"patient": {"hospitaldischargestatus": ""}},
        {"aps": {"absent": ""}},
        {"pred": {"absent": ""}},
    ],
)
def test_eicu_leaves_a_stay_out_that_does_not_qualify(
    tmp_path: Path, changes: dict[str, dict[str, str]]
) -> None:
    assert stays_of(Eicu().hospitals(physionet(tmp_path, **changes)))["hospital-9"] == ["3"]


def test_eicu_never_gives_the_answer_as_a_feature(tmp_path: Path) -> None:
    columns = set(Eicu().hospitals(physionet(tmp_path))["hospital-9"].records.cells)
    assert not {name for name in columns if name.startswith("baseline") or name == "diedinhospital"}


def test_eicu_says_where_to_get_the_tables_and_downloads_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        Eicu().hospitals(None)
    assert "https://physionet.org/content/eicu-crd-demo/" in caught.value.remedy
    assert str(tmp_path / "cache" / "clinimeta" / "eicu_demo") in caught.value.remedy
    assert "--data" in caught.value.remedy


def test_eicu_refuses_a_stay_that_occurs_twice(tmp_path: Path) -> None:
    physionet(tmp_path)
    table = tmp_path / "apacheApsVar.csv.gz"
    lines = gzip.decompress(table.read_bytes()).splitlines(keepends=True)
    table.write_bytes(gzip.compress(b"".join([*lines, lines[-1]])))
    with pytest.raises(DataError, match="a stay occurs twice") as caught:
        Eicu().hospitals(tmp_path)
    assert caught.value.found == "5 rows of 4 stays"


def test_eicu_refuses_a_table_without_a_column_it_needs(tmp_path: Path) -> None:
    physionet(tmp_path)
    table = tmp_path / "apachePredVar.csv.gz"
    table.write_bytes(gzip.compress(gzip.decompress(table.read_bytes()).replace(b"cirrhosis", b"cirhosis")))
    with pytest.raises(DataError, match="the column 'cirrhosis' is missing") as caught:
        Eicu().hospitals(tmp_path)
    assert "did you mean 'cirhosis'?" in caught.value.expected


def test_eicu_refuses_tables_without_any_qualifying_stay(tmp_path: Path) -> None:
    physionet(tmp_path)
    table = tmp_path / "patient.csv.gz"
    table.write_bytes(gzip.compress(gzip.decompress(table.read_bytes()).splitlines(keepends=True)[0]))
    with pytest.raises(DataError, match="no stay qualifies"):
        Eicu().hospitals(tmp_path)


@pytest.mark.data
def test_eicu_equals_the_prepared_table_on_every_shared_column(data_dir: Path) -> None:
    hospitals = Eicu().hospitals(data_dir)
    wanted = {
        row["patientunitstayid"]: row
        for row in rows_of(data_dir / "eicu_demo" / "stays_tabular.csv.gz")
        if row["unitvisitnumber"] == "1" and row["has_apache"] == "1" and row["label_hospital_death"]
    }
    names = {"hospital_death": "label_hospital_death"}
    compared: set[str] = set()
    for name, hospital in hospitals.items():
        cells = hospital.records.cells
        for column, texts in cells.items():
            for stay, text in zip(cells["patientunitstayid"], texts, strict=True):
                assert same(text, wanted[stay][names.get(column, column)]), f"{column} of a stay at {name}"
        compared |= {stay for stay in cells["patientunitstayid"] if wanted[stay]["hospitalid"] == name[9:]}
        assert set(cells) == {"patientunitstayid", "uniquepid", "age_years", "gender", "hospital_death"} | {
            *PHYSIOLOGY,
            *FLAGS,
        }
    assert compared == set(wanted)


def same(left: str, right: str) -> bool:
    try:
        return float(left) == float(right)
    except ValueError:
        return left == right


@pytest.mark.data
def test_eicu_has_the_promised_stays_deaths_and_hospitals(data_dir: Path) -> None:
    study = shipped("eicu")
    hospitals = DATASETS.build(study.data.name, study.data.options).hospitals(data_dir)
    tables = [encode(study.table, hospital.records) for hospital in hospitals.values()]
    assert len(tables) == 186
    assert sum(len(table) for table in tables) == 2004
    assert sum(int(table.rows.targets.sum()) for table in tables) == 173
    assert all(bool(np.isfinite(table.rows.inputs["table"].numpy()).all()) for table in tables)
    assert {len(table.rows.inputs["table"][0]) for table in tables} == {len(study.table.features)}


@pytest.mark.data
def test_eicu_names_the_files_it_read_whatever_their_case(data_dir: Path) -> None:
    files = Eicu().files(data_dir)
    assert list(files) == ["patient.csv.gz", "apacheapsvar.csv.gz", "apachepredvar.csv.gz"]
    assert all(digest(data_dir / "eicu_demo" / name) == sha256 for name, sha256 in files.items())
    assert Eicu().files(data_dir / "eicu_demo") == files


# A folder of CSV files


def test_each_csv_file_is_a_hospital(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "Ulm.csv").write_text("age,sick\n63,1\n")
    (tmp_path / "mine" / "bonn.csv.gz").write_bytes(gzip.compress(b"age;sick\n41;0\n50;1\n"))
    for other in ("README.txt", ".~lock.Ulm.csv"):
        (tmp_path / "mine" / other).write_text("not a table")
    (tmp_path / "mine" / "folder.csv").mkdir()
    for dataset, data in [(CsvFolder("mine"), tmp_path), (CsvFolder(), tmp_path / "mine")]:
        hospitals = dataset.hospitals(data)
        assert {name: len(h.records) for name, h in hospitals.items()} == {"Ulm": 1, "bonn": 2}
        assert all(hospital.test is None for hospital in hospitals.values())
        assert set(dataset.files(data)) == {"Ulm.csv", "bonn.csv.gz"}


def test_the_folder_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ulm.csv").write_text("age,sick\n63,1\n")
    monkeypatch.setenv("CLINIMETA_DATA", str(tmp_path))
    assert list(CsvFolder().hospitals(None)) == ["ulm"]


def test_without_a_folder_there_are_no_hospitals() -> None:
    with pytest.raises(MissingDataError, match="no data folder") as caught:
        CsvFolder().hospitals(None)
    assert "--data or CLINIMETA_DATA" in caught.value.remedy


@pytest.mark.parametrize(("folder", "found"), [("", "no *.csv"), ("nowhere", "no such folder")])
def test_a_folder_without_tables_is_named(tmp_path: Path, folder: str, found: str) -> None:
    with pytest.raises(MissingDataError) as caught:
        CsvFolder(folder).hospitals(tmp_path)
    assert caught.value.where == str(tmp_path / folder)
    assert found in caught.value.found


def test_two_files_cannot_be_the_same_hospital(tmp_path: Path) -> None:
    (tmp_path / "ulm.csv").write_text("age\n63\n")
    (tmp_path / "ulm.csv.gz").write_bytes(gzip.compress(b"age\n63\n"))
    with pytest.raises(DataError, match="two files name the hospital 'ulm'"):
        CsvFolder().hospitals(tmp_path)


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "a/../../b"])
def test_a_study_cannot_read_outside_the_data_folder(tmp_path: Path, folder: str) -> None:
    with pytest.raises(StudyError, match="leads out"):
        CsvFolder(folder).hospitals(tmp_path)


# The shipped studies


@pytest.mark.parametrize("name", ["heart-disease", "eicu"])
def test_a_shipped_study_compares_meta_learning_with_the_baselines(name: str) -> None:
    study = shipped(name)
    assert (study.name, study.primary) == (name, "maml")
    assert [arm.name for arm in study.arms] == ["maml", "protonet", "fedavg", "fedavg-finetuned", "local"]
    assert study.arm("local").training.rounds == 0
    assert study.arm("fedavg-finetuned").trained_by == "fedavg"
    fedavg = study.arm("fedavg").training
    assert fedavg.outer.name == "sgd"
    assert fedavg.outer.rate == fedavg.local_rate  # else it is not weight averaging
    assert {(q.arm, q.against) for q in study.questions} == {("maml", "fedavg-finetuned")}
    assert read_study(study.to_toml(), "again") == study
