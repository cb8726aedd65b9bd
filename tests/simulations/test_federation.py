"""Who trains and who is judged: nobody on both sides, everybody accounted for, the same on every machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.site import Site
from clinimeta.common.errors import DataError, MissingDataError, StudyError
from clinimeta.common.study import Evaluation, Study, read_study
from clinimeta.common.tasks.schema import Schema
from clinimeta.common.tasks.table import Records
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.datasets.base import Hospital
from clinimeta.simulations.federation import (
    EVERYONE,
    Federation,
    Split,
    dataset_of,
    deployment_split,
    encode_site,
    load,
    splits,
)

NAMES = [f"h{i:02}" for i in range(9)]
STUDY = """
name = "small"
primary = "maml"
data = { name = "csv_folder" }
model = { name = "linear" }
arms = [{ name = "maml", algorithm = { name = "maml" } }]

[table]
target = "sick"
classes = ["no", "yes"]
patient = "person"
columns = [{ name = "age", center = 50.0, scale = 10.0 }]
"""


def study(**changes: Any) -> Study:
    return read_study(STUDY, "study.toml").model_copy(update=changes)


def judged_by(split: str, **values: Any) -> Evaluation:
    return Evaluation(**{"name": "new hospitals", "split": split, **values})


def schema(**changes: Any) -> Schema:
    return study().table.model_copy(update=changes)


# Splits


@given(
    st.integers(2, 25),
    st.sampled_from(["unseen_sites", "site_folds", "leave_one_site_out"]),
    st.integers(1, 24),
    st.integers(2, 6),
)
def test_no_hospital_is_judged_by_what_it_helped_to_train(
    count: int, split: str, sites: int, folds: int
) -> None:
    names = [f"h{i}" for i in range(count)]
    if (split == "unseen_sites" and sites >= count) or (split == "site_folds" and folds > count):
        return
    for found in splits(judged_by(split, sites=sites, folds=folds), names):
        assert not set(found.train) & set(found.judged)
        assert sorted([*found.train, *found.judged]) == sorted(names)
        assert found.train
        assert found.judged
        assert list(found.train) == [name for name in names if name in found.train]  # in the given order


def test_unseen_sites_are_the_last_ones() -> None:
    assert splits(judged_by("unseen_sites", sites=3), NAMES) == [
        Split("first-6", tuple(NAMES[:6]), tuple(NAMES[6:]))
    ]


def test_each_hospital_is_left_out_once() -> None:
    found = splits(judged_by("leave_one_site_out"), NAMES)
    assert [split.judged for split in found] == [(name,) for name in NAMES]
    assert [split.name for split in found] == [f"without-{name}" for name in NAMES]


@pytest.mark.parametrize("folds", [2, 4, 9])
def test_the_folds_hold_each_hospital_once_and_are_of_like_size(folds: int) -> None:
    found = splits(judged_by("site_folds", folds=folds), NAMES)
    assert len({split.name for split in found}) == len(found) == folds
    assert sorted(name for split in found for name in split.judged) == NAMES
    sizes = [len(split.judged) for split in found]
    assert max(sizes) - min(sizes) <= 1


def test_the_folds_mix_the_hospitals_the_same_way_every_time() -> None:
    one, again = (splits(judged_by("site_folds", folds=3), NAMES) for _ in range(2))
    assert one == again
    assert [split.judged for split in one] != [tuple(NAMES[i::3]) for i in range(3)]


def test_hospitals_with_their_own_test_rows_all_train_and_are_all_judged() -> None:
    assert splits(judged_by("own_test_rows"), NAMES) == [Split(EVERYONE, tuple(NAMES), tuple(NAMES))]


def test_splits_of_different_training_have_different_names() -> None:
    every = [
        *splits(judged_by("own_test_rows"), NAMES),
        *splits(judged_by("unseen_sites", sites=2), NAMES),
        *splits(judged_by("unseen_sites", sites=3), NAMES),
        *splits(judged_by("leave_one_site_out"), NAMES),
        *splits(judged_by("site_folds", folds=3), NAMES),
        *splits(judged_by("site_folds", folds=4), NAMES),
    ]
    assert len({split.name for split in every}) == len({split.train for split in every}) == len(every)


@pytest.mark.parametrize(
    ("evaluation", "names", "expected"),
    [
        (judged_by("leave_one_site_out"), NAMES[:1], "two or more"),
        (judged_by("unseen_sites", sites=9), NAMES, "more than the 9 held out"),
        (judged_by("unseen_sites", sites=12), NAMES, "more than the 12 held out"),
        (judged_by("site_folds", folds=10), NAMES, "at least 10"),
    ],
)
def test_too_few_hospitals_are_an_error_that_counts(
    evaluation: Evaluation, names: list[str], expected: str
) -> None:
    with pytest.raises(StudyError, match="too few hospitals for the evaluation 'new hospitals'") as caught:
        splits(evaluation, names)
    assert caught.value.found == f"{len(names)} hospital{'s' * (len(names) != 1)}"
    assert expected in caught.value.expected
    assert caught.value.remedy


def test_an_evaluation_that_forgets_how_many_to_hold_out_is_told_which_key() -> None:
    text = STUDY.replace("arms =", 'evaluations = [{ name = "e", split = "unseen_sites" }]\narms =')
    with pytest.raises(StudyError) as caught:
        splits(read_study(text, "study.toml").evaluations[0], NAMES)
    assert "'sites'" in str(caught.value)
    assert "too few hospitals" not in str(caught.value)


def test_the_deployed_model_never_saw_the_hospitals_held_out() -> None:
    folds, unseen = judged_by("site_folds", folds=3), judged_by("unseen_sites", sites=2)
    found = deployment_split(study(evaluations=(folds, unseen)), NAMES)
    assert found == splits(unseen, NAMES)[0]


@pytest.mark.parametrize("evaluations", [(), (judged_by("leave_one_site_out"),)])
def test_where_nobody_is_held_out_everybody_trains_the_deployed_model(evaluations: Any) -> None:
    assert deployment_split(study(evaluations=evaluations), NAMES) == Split(EVERYONE, tuple(NAMES), ())


# People who were at several hospitals


def federation(people: Mapping[str, Sequence[str]], chosen: Schema, **test: Sequence[bool]) -> Federation:
    sites = {
        name: Site(
            name,
            Records(
                f"{name}.csv",
                {
                    "age": [str(40 + i) for i in range(len(persons))],
                    "sick": [("no", "yes")[i % 2] for i in range(len(persons))],
                    "person": persons,
                },
            ),
            tuple(test[name]) if name in test else None,
        )
        for name, persons in people.items()
    }
    return Federation(sites, {name: encode_site(chosen, site) for name, site in sites.items()}, {}, False)


PEOPLE = {"ulm": ["p1", "p2", "p3"], "bonn": ["p3", "p4"], "kiel": ["p5", "p1", "p6"]}


def test_training_leaves_out_who_was_also_at_a_hospital_that_is_judged() -> None:
    chosen = schema(patient_everywhere=True)
    found = federation(PEOPLE, chosen).training(chosen, ["ulm", "bonn"])
    assert list(found.sites) == list(found.tables) == ["ulm", "bonn"]
    assert found.sites["ulm"].test == (
        True,
        False,
        False,
    )  # p1 was in Kiel too; p3 was nowhere that is judged
    assert found.tables["ulm"].test.tolist() == [True, False, False]
    assert len(found.sites["ulm"].table(chosen)) == 2
    assert found.sites["bonn"].test is None


def test_rows_that_were_kept_back_stay_kept_back() -> None:
    chosen = schema(patient_everywhere=True)
    found = federation(PEOPLE, chosen, ulm=[False, False, True]).training(chosen, ["ulm", "bonn"])
    assert found.sites["ulm"].test == (True, False, True)


def test_the_tables_for_judging_are_left_alone() -> None:
    chosen = schema(patient_everywhere=True)
    whole = federation(PEOPLE, chosen)
    whole.training(chosen, ["ulm", "bonn"])
    assert not whole.tables["ulm"].test.any()
    assert whole.sites["ulm"].test is None


def test_spaces_do_not_hide_a_person_from_another_hospital() -> None:
    chosen = schema(patient_everywhere=True)
    found = federation({"ulm": ["p1", "p2"], "kiel": [" p1", "p3"]}, chosen).training(chosen, ["ulm"])
    assert found.sites["ulm"].test == (True, False)


@pytest.mark.parametrize("chosen", [schema(), schema(patient="")], ids=["local names", "no names"])
def test_a_name_that_means_somebody_else_elsewhere_leaves_nobody_out(chosen: Schema) -> None:
    found = federation(PEOPLE, chosen).training(chosen, ["ulm", "bonn"])
    assert all(site.test is None for site in found.sites.values())


# Reading the hospitals


def write(folder: Path, name: str, rows: int = 3) -> None:
    lines = [f"p{i},{40 + i},{('no', 'yes')[i % 2]}" for i in range(rows)]
    (folder / f"{name}.csv").write_text("\n".join(["person,age,sick", *lines]) + "\n")


def test_a_studys_hospitals_are_read_and_encoded(tmp_path: Path) -> None:
    for name, rows in (("ulm", 3), ("bonn", 5)):
        write(tmp_path, name, rows)
    loaded = load(study(), tmp_path)
    assert {name: len(table) for name, table in loaded.tables.items()} == {"bonn": 5, "ulm": 3}
    assert {name: len(site.records) for name, site in loaded.sites.items()} == {"bonn": 5, "ulm": 3}
    assert all(site.name == name and site.test is None for name, site in loaded.sites.items())
    assert torch.allclose(loaded.tables["ulm"].rows.inputs["table"][:, 0], torch.tensor([-1.0, -0.9, -0.8]))
    assert sorted(loaded.files) == ["bonn.csv", "ulm.csv"]
    assert not loaded.synthetic


def test_the_protocols_test_rows_come_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, "ulm")
    plain = load(study(), tmp_path).sites["ulm"].records
    kind = DATASETS.get("csv_folder")
    monkeypatch.setattr(
        kind, "hospitals", lambda _self, _data: {"ulm": Hospital(plain, [False, True, False])}
    )
    loaded = load(study(), tmp_path)
    assert loaded.sites["ulm"].test == (False, True, False)
    assert loaded.tables["ulm"].test.tolist() == [False, True, False]


def test_a_table_that_does_not_fit_names_its_hospital(tmp_path: Path) -> None:
    write(tmp_path, "ulm")
    (tmp_path / "bonn.csv").write_text("person,age,sick\np1,old,no\n")
    with pytest.raises(DataError) as caught:
        load(study(), tmp_path)
    assert caught.value.where == f"{tmp_path / 'bonn.csv'}, line 2, column 'age'"


def test_a_missing_folder_is_an_error_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError):
        load(study(), tmp_path / "nowhere")


def test_an_unknown_data_set_or_option_is_named_with_the_nearest() -> None:
    with pytest.raises(StudyError, match="no data set 'csv_foldr'") as caught:
        dataset_of(read_study(STUDY.replace('"csv_folder"', '"csv_foldr"'), "study.toml"))
    assert "did you mean 'csv_folder'?" in caught.value.expected
    with pytest.raises(StudyError, match="unknown key 'foldr'") as caught:
        dataset_of(read_study(STUDY.replace('"csv_folder"', '"csv_folder", foldr = "x"'), "study.toml"))
    assert "[data]" in caught.value.where
