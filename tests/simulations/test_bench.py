"""`clinimeta bench`: only equal work is compared, and what was measured where is written down.

How fast anything is, no test says.
"""

import csv
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.algorithms.meta_gradient import task_gradients_looped
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.applications.regression import Regression
from clinimeta.common.models.conv4 import Conv4
from clinimeta.common.models.mlp import MLP
from clinimeta.common.params import map_params
from clinimeta.simulations import studies
from clinimeta.simulations.batched import Together
from clinimeta.simulations.benchmarks import (
    adaptation,
    bench,
    measuring,
    peers,
    privacy_utility,
    rounds,
    secagg,
    secagg_flower,
)
from clinimeta.simulations.benchmarks.adaptation import Setting
from clinimeta.simulations.benchmarks.bench import cell, markdown
from clinimeta.simulations.benchmarks.measuring import (
    Timing,
    UnequalWorkError,
    check_equal,
    machine,
    relative_error,
    take_turns,
)
from clinimeta.simulations.benchmarks.rounds import MAML_WORK, Candidate, Laps, Tables
from clinimeta.simulations.benchmarks.secagg import begin, check_exact, client, drop_outs, finish
from clinimeta.simulations.cli import app, run

TINY = [
    Setting("table", MAML(MLP(3, 3, hidden=(4,)), Diagnosis(3), 2, first_order=True), 2, 3, 4, 1),
    Setting("wave", MAML(MLP(1, 1, hidden=(4,)), Regression(0), 1), 2, 3, 4, 1),
    Setting("image", MAML(Conv4(16 * 16, 3, filters=2, norm="batch"), Diagnosis(3), 1), 2, 3, 4, 1),
]
COLUMNS = ["setting", "candidate", "cpu_s", "wall_s", "times_cpu", "times_wall", "reference", "turns"]


def read(path: Path) -> tuple[str, list[dict[str, str]]]:
    comment, _, text = path.read_text().partition("\n")
    return comment, list(csv.DictReader(text.splitlines()))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and sites of no size."""
    monkeypatch.setattr(adaptation, "settings", lambda *, quick: TINY[1:2] if quick else TINY)
    small = [
        Candidate("clinimeta, batched", MAML_WORK, partial(rounds.batched, trace=False), (1, 2)),
        Candidate("torch loop", MAML_WORK, rounds.torch_loop, (2,)),
    ]
    monkeypatch.setattr(rounds, "candidates", lambda *, quick: small[: 1 + quick])
    monkeypatch.setattr(rounds, "fresh_processes", lambda: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("tiny")
def test_adaptation_writes_a_table_a_picture_and_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["bench", "adaptation", "--quick", "--json", "--out", str(tmp_path / "b")]
    monkeypatch.setattr("sys.argv", ["clinimeta", *typed])
    said = CliRunner().invoke(app, typed)
    assert said.exit_code == 0, said.output
    comment, found = read(tmp_path / "b" / "adaptation.csv")
    assert comment.startswith("# clinimeta bench adaptation ")
    assert "torch" in comment
    assert list(found[0])[: len(COLUMNS)] == COLUMNS
    named = {row["candidate"] for row in found}
    assert {"clinimeta", "clinimeta, vmapped", adaptation.SPECIFICATION} <= named
    assert "learn2learn" in named or peers.LOOP in named
    assert all(float(row["cpu_s"]) >= 0 for row in found)
    assert all(float(row["difference"]) < 1e-4 for row in found)
    assert all((row["trace_cpu_s"] != "") == (row["candidate"] == "clinimeta") for row in found)
    assert (tmp_path / "b" / "adaptation.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "b" / "machine.json").read_text())["versions"]["torch"] == torch.__version__
    assert json.loads(said.stdout[said.stdout.index("[\n") :])[0]["setting"].startswith("wave")


@pytest.mark.usefixtures("tiny")
def test_rounds_writes_a_curve_over_sites(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["bench", "rounds", "--quick", "--out", str(tmp_path)])
    assert said.exit_code == 0, said.output
    _, found = read(tmp_path / "rounds.csv")
    assert [(row["engine"], row["sites"]) for row in found] == [
        ("clinimeta, batched", "1"),
        ("clinimeta, batched", "2"),
        ("torch loop", "2"),
    ]
    assert all(float(row["peak_mib"]) >= float(row["base_mib"]) > 0 for row in found)
    picture = (tmp_path / "rounds.svg").read_text()
    assert picture.count("<svg") == 3
    assert "torch loop" in picture


@pytest.mark.slow
def test_every_measurement_of_rounds_has_a_process_of_its_own() -> None:
    untraced = partial(rounds.batched, trace=False)
    found = rounds.measure([Candidate("batched", MAML_WORK, untraced, (1, 2))], 1)
    assert [row["sites"] for row in found] == [1, 2]


@pytest.mark.parametrize("setting", TINY, ids=lambda s: s.title)
def test_every_candidate_computes_the_specification(setting: Setting) -> None:
    params, batch = setting.draw()
    routes = adaptation.ours(setting, params, batch)
    expected = routes[adaptation.SPECIFICATION]()
    routes.pop(adaptation.VMAP_TRACED, None)  # seconds; the learners' contracts hold the tracer to its word
    for step in (*routes.values(), *peers.candidates(setting.learner, params, batch).values()):
        assert relative_error(step(), expected) < 1e-4


@pytest.mark.parametrize("setting", TINY, ids=lambda s: s.title)
def test_the_labelled_loop_computes_the_specification(setting: Setting) -> None:
    params, batch = setting.draw()
    module = peers.module_of(setting.learner.model, params)
    peers.clone_and_adapt(module, setting.learner, batch)
    expected = task_gradients_looped(setting.learner, params, batch).sum()
    assert relative_error(peers.gradients_of(module, params), expected) < 1e-4


def test_unequal_work_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def other(*given: Any) -> Any:
        return {"other": lambda: map_params(lambda p: p * 2, given[1])}

    monkeypatch.setattr(peers, "candidates", other)
    monkeypatch.setattr(adaptation, "take_turns", lambda *_: pytest.fail("timed"))
    with pytest.raises(UnequalWorkError, match="'other' computes something else"):
        adaptation.measure([TINY[1]])
    monkeypatch.setattr(adaptation, "settings", lambda **_: [TINY[1]])
    command = typer.main.get_command(app)
    monkeypatch.setattr(sys, "argv", ["clinimeta"])
    words = ["bench", "adaptation", "--out", str(tmp_path)]
    assert run(lambda: command.main(words, standalone_mode=False)) == 1
    assert not (tmp_path / "adaptation.csv").exists()


@pytest.mark.parametrize("error", [2e-4, float("nan"), float("inf")])
def test_a_difference_over_the_tolerance_is_an_error(error: float) -> None:
    check_equal("x", {"a": 1e-5})
    with pytest.raises(UnequalWorkError, match="x: 'b'"):
        check_equal("x", {"a": 0.0, "b": error})


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "TURN_S", 0.0)
    calls: list[str] = []
    found = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert calls == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_a_short_call_is_repeated_for_a_whole_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "TURN_S", 1.0)
    seconds = iter([0.4, 0.5, 0.3, 9.0])
    monkeypatch.setattr(measuring, "timed", lambda call: Timing(call() or 0.0, next(seconds)))
    taken = take_turns({"a": lambda: 0.2}, 1)["a"]
    assert (taken.cpu_s, taken.wall_s) == pytest.approx((0.2, 0.4))


def test_the_machine_is_recorded() -> None:
    record = machine()
    assert {"cpu", "cores", "torch_threads", "load", "python", "versions"} == set(record)
    assert record["cores"] >= 1
    assert record["versions"]["clinimeta"]


def test_a_mapping_of_tables_serves_the_batched_engine_and_keeps_none() -> None:
    tables = Tables(3)
    assert list(tables) == sorted(tables)
    assert len(tables) == 3
    name = next(iter(tables))
    assert torch.equal(tables[name].rows.targets, tables[name].rows.targets)
    together = Together(rounds.job(MAML_WORK), {}, tables)
    done = together.meta_gradient(1, rounds.start(MAML_WORK), list(tables))
    assert done.aggregate.accepted == tuple(tables)
    assert not together._tables


def test_the_engines_and_the_loop_agree() -> None:
    batched = rounds.batched(2, 1, Laps(), trace=False)
    assert relative_error(rounds.loopback(2, 1, Laps(), trace=False), batched) < 1e-4
    assert relative_error(rounds.torch_loop(2, 1, Laps()), batched) < 1e-4


def test_tables_for_the_page() -> None:
    assert [cell(value) for value in (0.0123456, 1234.5, None, "pfl", 10000)] == [
        "0.0123",
        "1,234",
        "",
        "pfl",
        "10,000",
    ]
    text = markdown([{"a": 1.0, "b": None}], {"a": "A", "b": "B"})
    assert text == "| A | B |\n| --- | --- |\n| 1 |  |"


def test_secagg_writes_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "TURN_S", 0.0)
    monkeypatch.setattr(secagg, "settings", lambda *, quick: [secagg.Setting(4, 30 * (1 + quick), (0, 1))])
    typed = ["bench", "secagg", "--quick", "--json", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["clinimeta", *typed])
    said = CliRunner().invoke(app, typed)
    assert said.exit_code == 0, said.output
    comment, found = read(tmp_path / "secagg.csv")
    assert comment.startswith("# clinimeta bench secagg ")
    assert [(row["sites"], row["parameters"], row["dropped"]) for row in found] == [
        ("4", "60", "0"),
        ("4", "60", "1"),
    ]
    assert [row["masks_removed"] for row in found] == ["4", "6"]
    assert all(float(row["client_ms"]) > 0 and float(row["flower_server_times"]) > 0 for row in found)
    assert set(bench.SECAGG_COLUMNS) <= set(found[0])
    assert "Flower" in (tmp_path / "secagg.svg").read_text()


def test_secagg_times_exact_sums_only() -> None:
    begun = begin(4, 50)
    done = finish(begun, 1)
    assert len(done.survivors) == 3
    check_exact(begun, done)
    client(begun, done)
    other = dict(begun.vectors)
    other[done.survivors[0]] = other[done.survivors[1]]
    with pytest.raises(UnequalWorkError, match="not what the survivors have put in"):
        check_exact(replace(begun, vectors=other), done)
    with pytest.raises(UnequalWorkError, match="answers something else"):
        client(begun, replace(done, asked=done.asked[:-1]))


def test_an_unmasking_of_flowers_gives_the_mean() -> None:
    vectors = [np.linspace(-1, 1, 20, dtype=np.float32) * (i + 1) / 3 for i in range(3)]
    found = secagg_flower.server(vectors, 1, 3)()
    assert np.abs(found - np.mean(vectors, axis=0)).max() < 2 * secagg_flower.CLIP / secagg_flower.RANGE
    assert secagg_flower.client(vectors[0], 4, 1, 3)()


@pytest.mark.parametrize("quick", [True, False])
def test_the_settings_of_secagg_are_within_the_threshold(quick: bool) -> None:
    for setting in secagg.settings(quick=quick):
        assert setting.dropped == drop_outs(setting.sites)
        assert setting.dropped[0] == 0
        assert setting.sites - setting.dropped[-1] > 2 * setting.sites / 3


def test_privacy_utility_sets_promises_beside_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies.find("default")
    evaluation = study.evaluations[0].model_copy(update={"shots": (1,), "repeats": 1, "sites": 2})
    study = study.model_copy(
        update={
            "data": study.data.model_copy(update={"sites": 6}),
            "evaluations": (evaluation,),
            "questions": (),
        }
    )
    setting = privacy_utility.Setting(study, rounds=1, epsilons=(math.inf, 2.0))
    monkeypatch.setattr(privacy_utility, "settings", lambda *_, **__: [setting])
    typed = ["bench", "privacy-utility", "--json", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["clinimeta", *typed])
    said = CliRunner().invoke(app, typed)
    assert said.exit_code == 0, said.output
    comment, found = read(tmp_path / "privacy-utility.csv")
    assert comment.startswith("# clinimeta bench privacy-utility ")
    ways = [(row["learns"], row["epsilon"]) for row in found if row["score"] == "auroc"]
    assert ways == [
        ("as the study has it", "none"),
        ("all numbers learn", "inf"),
        ("all numbers learn", "2"),
        ("the last layer learns", "inf"),
        ("the last layer learns", "2"),
        ("nothing learns", "0"),
    ]
    assert {row["numbers"] for row in found} == {"2081", "33", "0"}
    assert all((row["difference"] == "") == (row["epsilon"] == "none") for row in found)
    assert (tmp_path / "privacy-utility.svg").read_text().count("<svg") == 3


def test_every_arm_under_a_promise_is_masked_and_clipped() -> None:
    study = privacy_utility.with_promises(privacy_utility.Setting(studies.find("default")))
    plain, *others, untrained = study.arms
    assert untrained.training.rounds == 0
    assert plain.name == study.primary
    assert len(others) == 2 * len(privacy_utility.EPSILONS)
    for arm in others:
        plan = study.plan(arm, 0)
        assert (arm.protection.answers, arm.protection.clip, arm.episodes.tasks_a_patient) == ("masked", 1, 1)
        assert (plan.protection.noise_multiplier > 0) == (arm.protection.epsilon > 0)


def test_a_model_that_is_a_head_has_no_smaller_part() -> None:
    arms = privacy_utility.with_promises(privacy_utility.Setting(studies.find("eicu"))).arms
    assert {arm.training.trainable for arm in arms} == {"all"}


def test_eicu_is_measured_where_its_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLINIMETA_DATA", raising=False)
    for data, names in ((None, ["default"]), (tmp_path, ["default", "eicu"])):
        assert [s.study.name for s in privacy_utility.settings(data, quick=False)] == names
