"""`simulate --secure-aggregation --epsilon`: every study can be protected, and the report says how."""

import json
from pathlib import Path

import pytest
import tomli_w

from clinimeta.common.errors import StudyError
from clinimeta.common.study import read_study
from clinimeta.simulations import session, studies
from clinimeta.simulations.protecting import protected
from clinimeta.simulations.session import Request


@pytest.mark.parametrize("name", studies.names())
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 8.0])
def test_every_study_can_be_protected_and_read_back(name: str, masked: bool, epsilon: float) -> None:
    study = studies.find(name)
    changed = protected(study, masked=masked, epsilon=epsilon, delta=1e-6)
    assert read_study(changed.to_toml(), "again") == changed
    assert changed.arm(f"{study.primary}-unprotected").protection.answers == "plain"
    for arm in study.arms:
        trained = arm.training.rounds > 0 and not arm.trained_by
        found = changed.arm(arm.name).promised
        assert found.answers == ("plain" if not trained else "masked" if masked else "quantised")
        assert (found.noise_multiplier > 0) == (trained and epsilon > 0)
        assert changed.arm(arm.name).training.rounds == arm.training.rounds


def test_without_noise_nothing_but_the_answers_changes() -> None:
    study = studies.find("default")
    changed = protected(study, masked=True, epsilon=0.0, delta=1e-6)
    for arm in study.arms:
        found = changed.arm(arm.name)
        assert (found.training, found.episodes, found.algorithm) == (
            arm.training,
            arm.episodes,
            arm.algorithm,
        )


def test_more_rounds_take_more_noise() -> None:
    study = studies.find("default")
    arm = protected(study, masked=True, epsilon=8.0, delta=1e-6).arm("maml")
    longer = arm.model_copy(update={"training": arm.training.model_copy(update={"rounds": 4 * 30})})
    assert longer.promised.noise_multiplier == pytest.approx(2 * arm.promised.noise_multiplier, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"protection": {"answers": "masked", "noise_multiplier": 1.0}}, "follows from epsilon"),
        ({"protection": {"answers": "masked", "epsilon": 1.0}, "training": {"weighting": "rows"}}, "private"),
        ({"protection": {"answers": "masked", "epsilon": 1.0}, "training": {"gate": {"on": True}}}, "gate"),
        ({"protection": {"answers": "masked"}, "training": {"aggregation": {"rule": "median"}}}, "median"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, dict[str, object]], what: str) -> None:
    text = studies.find("default").to_toml()
    study = json.loads(json.dumps(studies.find("default").model_dump(mode="json")))
    for key, values in changes.items():
        study["arms"][0][key] |= values

    assert read_study(text, "whole")
    with pytest.raises(StudyError, match=what):
        read_study(tomli_w.dumps(study), "changed")


def test_a_protected_run_from_command_to_report(tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "small.toml"
    whole = studies.find("default")
    (asked,) = whole.evaluations
    few = asked.model_copy(update={"shots": (5,), "repeats": 2, "bootstrap": 100, "references": ()})
    changes = {"arms": (whole.arm("maml"),), "evaluations": (few,), "questions": (), "seeds": (0,)}
    file.write_text(whole.model_copy(update=changes).to_toml())
    request = Request(
        study=str(file), out=out, engine="batched", rounds=2, masked=True, epsilon=8.0, argv=("simulate",)
    )
    results = session.simulate(request)
    page = (out / "report.html").read_text()
    assert "How answers are protected" in page
    assert "the sum over hospitals only" in page
    assert "MAML, unprotected" in page
    by_arm = {summary.arm: summary for summary in results.rounds}
    assert by_arm["maml"].metrics == {}
    assert "query_loss" in by_arm["maml-unprotected"].metrics
    assert [a.against for a in results.answers][-1] == "maml"
