"""A run directory is never half written: whatever stops a run, what is there is whole, or is not there."""

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tasks import FEATURES, learner

from clinimeta.common.errors import NumericalError, RunDirError
from clinimeta.common.files import write_atomically
from clinimeta.common.models.linear import Linear
from clinimeta.common.optim import SGD, Adam
from clinimeta.common.params import digest
from clinimeta.common.rng import generator
from clinimeta.server.store import KEPT_CHECKPOINTS, RunDir
from clinimeta.server.training import RoundSummary, TrainingState, begin, step

PLAN = "digest of the plan"
NAME = "seed0/all/maml"
SUMMARY = RoundSummary(
    training=NAME,
    arm="maml",
    round=1,
    cohort=4,
    accepted=2,
    refused={"ulm": "not finite"},
    silent=("bern",),
    metrics={"query_loss": 0.7},
    gradient_norm=1.5,
    bytes_down=100,
    bytes_up=200,
    seconds=0.25,
    curve={"maml": 0.8},
)


def state(number: int) -> TrainingState:
    params = Linear(3, 1).init(generator("store", number))
    optimizer = Adam(0.1)
    _, moments = optimizer.update(params, optimizer.init(params), params)
    return TrainingState(number, params, moments)


def assert_same(found: TrainingState | None, expected: TrainingState) -> None:
    assert found is not None
    assert found.round == expected.round
    assert digest(found.params) == digest(expected.params)
    assert digest(found.optimizer) == digest(expected.optimizer)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", 'name = "x"\n')


def checkpoints(run_dir: RunDir, training: str = NAME) -> list[str]:
    return sorted(path.name for path in (run_dir.path / "trainings" / training).iterdir())


def everything(run_dir: RunDir) -> set[str]:
    return {str(path.relative_to(run_dir.path)) for path in run_dir.path.rglob("*") if path.is_file()}


def crash(*_: Any) -> None:
    raise KeyboardInterrupt


# Starting and opening a run


def test_a_new_run_holds_its_study(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "new"
    run_dir = RunDir.create(path, 'name = "größer"\n')
    assert run_dir == RunDir.open(path) == RunDir(path)
    assert run_dir.study_toml() == 'name = "größer"\n'
    assert everything(run_dir) == {"study.toml"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert RunDir.create(tmp_path, "").path == tmp_path


@pytest.mark.parametrize(
    "make", [lambda p: (p / "notes.txt").write_text("x"), lambda p: (p / "folder").mkdir()]
)
def test_a_folder_with_something_in_it_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunDirError, match="not empty") as caught:
        RunDir.create(tmp_path, "")
    assert f"--resume {tmp_path}" in caught.value.remedy
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_in_the_folders_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("precious")
    with pytest.raises(RunDirError) as caught:
        RunDir.create(file, "")
    assert caught.value.where == str(file)
    assert file.read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirError, match="cannot be written") as caught:
        RunDir.create(tmp_path / "file" / "run", "")
    assert caught.value.found == os.strerror(errno.ENOTDIR)


def test_a_folder_whose_name_the_system_refuses_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    with pytest.raises(RunDirError, match="cannot be written") as caught:
        RunDir.create(path, "")
    assert caught.value.found == os.strerror(errno.ENAMETOOLONG)
    with pytest.raises(RunDirError, match="not a run directory"):
        RunDir.open(path)


def test_a_folder_that_may_not_be_read_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(RunDirError) as caught:
        RunDir.create(tmp_path, "")
    assert caught.value.where == str(tmp_path)
    assert caught.value.found == os.strerror(errno.EACCES)


def test_a_folder_that_may_not_be_written_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(RunDirError, match="cannot be written") as caught:
        RunDir.create(tmp_path, "")
    assert caught.value.found == os.strerror(errno.EACCES)


def test_an_error_of_the_system_without_words_still_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(RunDirError) as caught:
        RunDir.create(tmp_path, "")
    assert caught.value.found


@pytest.mark.parametrize(("path", "found"), [("nowhere", "no such folder"), (".", "no study.toml in it")])
def test_what_is_no_run_is_refused(tmp_path: Path, path: str, found: str) -> None:
    with pytest.raises(RunDirError, match="not a run directory") as caught:
        RunDir.open(tmp_path / path)
    assert caught.value.found == found


# Writing whole or not at all


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"", b"\0\xff" * 100):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_crash_between_write_and_rename_leaves_the_old_file(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir.write_manifest({"status": "running"})
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run_dir.write_manifest({"status": "finished"})
    with pytest.raises(KeyboardInterrupt):
        run_dir.write_bytes("model.safetensors", b"new")
    monkeypatch.undo()
    assert run_dir.manifest() == {"status": "running"}
    assert everything(run_dir) == {"study.toml", "manifest.json"}


def test_a_crash_while_writing_leaves_the_old_file(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir.write_text("report.html", "old")
    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        run_dir.write_text("report.html", "new")
    monkeypatch.undo()
    assert (run_dir.path / "report.html").read_text() == "old"
    assert everything(run_dir) == {"study.toml", "report.html"}


def test_what_a_power_cut_left_beside_a_file_is_in_nobodys_way(run_dir: RunDir) -> None:
    """A process that is killed cannot tidy up: the half-written copy stays under its own name."""
    (run_dir.path / ".manifest.json.part").write_bytes(b'{"status": "fini')
    folder = run_dir.path / "trainings" / NAME
    folder.mkdir(parents=True)
    (folder / ".round-00002.safetensors.part").write_bytes(b"\x80")
    assert run_dir.latest(NAME, PLAN) is None
    run_dir.write_manifest({"status": "finished"})
    run_dir.checkpoint(NAME, state(2), PLAN)
    assert run_dir.manifest() == {"status": "finished"}
    assert_same(run_dir.latest(NAME, PLAN), state(2))


def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        done.append("sync the folder" if stat.S_ISDIR(status.st_mode) else f"sync {status.st_size} bytes")
        fsync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        done.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomically(tmp_path / "file", b"12345")
    assert done == ["sync 5 bytes", "rename to file", "sync the folder"]


# The manifest


def test_a_manifest_is_read_back(run_dir: RunDir) -> None:
    manifest = {"seeds": [0, 1], "sites": {"ulm": "20-49"}, "status": "größer"}
    run_dir.write_manifest(manifest)
    assert run_dir.manifest() == manifest


@pytest.mark.parametrize("text", [None, "", "{", '["a list"]', "null", "\xff"])
def test_a_manifest_that_is_missing_or_damaged_is_refused(run_dir: RunDir, text: str | None) -> None:
    if text is not None:
        (run_dir.path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDirError, match="no readable manifest") as caught:
        run_dir.manifest()
    assert f"--resume {run_dir.path}" in caught.value.remedy


# Checkpoints


def test_before_the_first_round_there_is_no_checkpoint(run_dir: RunDir) -> None:
    assert run_dir.latest(NAME, PLAN) is None


def test_the_newest_checkpoint_is_read_back_to_the_bit(run_dir: RunDir) -> None:
    for number in (9, 10, 11):
        run_dir.checkpoint(NAME, state(number), PLAN)
        assert_same(run_dir.latest(NAME, PLAN), state(number))


@pytest.mark.parametrize("optimizer", [SGD(0.1, 0.9), Adam(0.1)])
def test_a_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    run_dir: RunDir, optimizer: SGD | Adam
) -> None:
    start = begin(learner("maml", "linear", "binary"), optimizer, seed=4)
    gradients = [Linear(FEATURES, 1).init(generator("gradient", i)) for i in range(5)]
    plain = resumed = start
    for gradient in gradients:
        plain = step(plain, gradient, optimizer)
        run_dir.checkpoint(NAME, step(resumed, gradient, optimizer), PLAN)
        found = run_dir.latest(NAME, PLAN)
        assert found is not None
        resumed = found
    assert_same(resumed, plain)


def test_only_the_newest_checkpoints_are_kept(run_dir: RunDir) -> None:
    for number in range(1, 6):
        run_dir.checkpoint(NAME, state(number), PLAN)
    assert KEPT_CHECKPOINTS == 2
    assert checkpoints(run_dir) == ["round-00004.safetensors", "round-00005.safetensors"]


@pytest.mark.parametrize("first", [9, 99, 999, 99_998, 999_998])
def test_the_newest_is_newest_by_number_however_many_digits_it_has(run_dir: RunDir, first: int) -> None:
    for number in range(first, first + 4):
        run_dir.checkpoint(NAME, state(number), PLAN)
        assert_same(run_dir.latest(NAME, PLAN), state(number))
    assert len(checkpoints(run_dir)) == KEPT_CHECKPOINTS


@pytest.mark.parametrize("name", ["round-best", "round-00001 (copy)", "round-"])
def test_a_file_of_somebody_else_is_no_checkpoint_and_stays(run_dir: RunDir, name: str) -> None:
    folder = run_dir.path / "trainings" / NAME
    folder.mkdir(parents=True)
    (folder / f"{name}.safetensors").write_bytes(b"kept for later")
    assert run_dir.latest(NAME, PLAN) is None
    for number in range(1, 5):
        run_dir.checkpoint(NAME, state(number), PLAN)
    assert_same(run_dir.latest(NAME, PLAN), state(4))
    assert checkpoints(run_dir) == sorted(
        [f"{name}.safetensors", "round-00003.safetensors", "round-00004.safetensors"]
    )


def test_trainings_do_not_see_each_others_checkpoints(run_dir: RunDir) -> None:
    run_dir.checkpoint("one", state(1), PLAN)
    run_dir.checkpoint("two", state(2), PLAN)
    assert_same(run_dir.latest("one", PLAN), state(1))
    assert_same(run_dir.latest("two", PLAN), state(2))
    assert run_dir.latest("three", PLAN) is None


def test_a_crash_at_a_checkpoint_leaves_the_one_before(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir.checkpoint(NAME, state(1), PLAN)
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run_dir.checkpoint(NAME, state(2), PLAN)
    monkeypatch.undo()
    assert_same(run_dir.latest(NAME, PLAN), state(1))
    assert checkpoints(run_dir) == ["round-00001.safetensors"]


def test_a_checkpoint_of_another_plan_is_refused(run_dir: RunDir) -> None:
    run_dir.checkpoint(NAME, state(1), PLAN)
    with pytest.raises(RunDirError, match="belongs to another plan") as caught:
        run_dir.latest(NAME, "another digest")
    assert caught.value.where.endswith("round-00001.safetensors")


def weights_file(metadata: dict[str, str] | None) -> bytes:
    data: bytes = safetensors.torch.save({"params.w": torch.zeros(2)}, metadata)
    return data


GOOD = weights_file({"round": "1", "plan": PLAN})
DAMAGED = {
    "empty": b"",
    "truncated": GOOD[:-1],
    "a byte too many": GOOD + b"\0",
    "only a header": GOOD[:-8],
    "text": b"checkpoint",
    "without metadata": weights_file(None),
    "without a round": weights_file({"plan": PLAN}),
    "a round that is no number": weights_file({"round": "one", "plan": PLAN}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_still_serves(
    run_dir: RunDir, name: str
) -> None:
    run_dir.checkpoint(NAME, state(1), PLAN)
    damaged = run_dir.path / "trainings" / NAME / "round-00002.safetensors"
    damaged.write_bytes(DAMAGED[name])
    with pytest.raises(RunDirError, match="a checkpoint is damaged") as caught:
        run_dir.latest(NAME, PLAN)
    assert caught.value.where == str(damaged)
    damaged.unlink()  # the remedy that the message names
    assert "delete this one file" in caught.value.remedy
    assert_same(run_dir.latest(NAME, PLAN), state(1))


def test_a_folder_in_a_checkpoints_place_is_refused(run_dir: RunDir) -> None:
    (run_dir.path / "trainings" / NAME / "round-00002.safetensors").mkdir(parents=True)
    with pytest.raises(RunDirError, match="a checkpoint is damaged"):
        run_dir.latest(NAME, PLAN)


# The rounds' metrics


def test_rounds_are_read_back_in_order(run_dir: RunDir) -> None:
    assert run_dir.rounds() == []
    written = [replace(SUMMARY, round=number) for number in (1, 2, 3)]
    for summary in written:
        run_dir.append_round(summary)
    assert run_dir.rounds() == written
    lines = (run_dir.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("kept", [1, 10, 100, -2, -1])
def test_a_torn_last_line_is_left_out(run_dir: RunDir, kept: int) -> None:
    run_dir.append_round(SUMMARY)
    run_dir.append_round(replace(SUMMARY, round=2))
    path = run_dir.path / "metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    found = [s.round for s in run_dir.rounds()]
    assert found == ([1, 2] if kept == -1 else [1])  # all but the line end is a whole line


@pytest.mark.parametrize(
    "line", [b"[]", b"3", b'"text"', b"{}", b'{"silent": 3}', b'{"silent": []}', b"\xff\xfe", b""]
)
def test_a_line_that_is_no_round_is_left_out(run_dir: RunDir, line: bytes) -> None:
    run_dir.append_round(SUMMARY)
    with (run_dir.path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    assert run_dir.rounds() == [SUMMARY]


def test_a_line_of_another_version_is_left_out(run_dir: RunDir) -> None:
    run_dir.append_round(SUMMARY)
    path = run_dir.path / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().replace('"arm"', '"way"'))
    assert run_dir.rounds() == [SUMMARY]


def test_rounds_that_are_run_again_are_forgotten_first(run_dir: RunDir) -> None:
    others = [replace(SUMMARY, training="other", round=number) for number in (1, 2, 3)]
    mine = [replace(SUMMARY, round=number) for number in (1, 2, 3)]
    for summary in (*others, *mine):
        run_dir.append_round(summary)
    run_dir.forget_rounds_after(NAME, 1)
    assert run_dir.rounds() == [*others, mine[0]]
    run_dir.forget_rounds_after(NAME, 0)
    assert run_dir.rounds() == others


def test_after_a_torn_line_a_resumed_run_appends_whole_lines(run_dir: RunDir) -> None:
    run_dir.append_round(SUMMARY)
    path = run_dir.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"training": "seed0/a')
    run_dir.forget_rounds_after(NAME, 1)
    run_dir.append_round(replace(SUMMARY, round=2))
    assert [s.round for s in run_dir.rounds()] == [1, 2]


def test_a_round_is_on_disk_before_append_returns(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    run_dir.append_round(SUMMARY)
    assert synced == [(run_dir.path / "metrics.jsonl").stat().st_size]


def test_a_crash_while_forgetting_forgets_nothing(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir.append_round(SUMMARY)
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run_dir.forget_rounds_after(NAME, 0)
    monkeypatch.undo()
    assert run_dir.rounds() == [SUMMARY]


# The state that a checkpoint keeps


def test_a_step_counts_the_round_and_leaves_the_old_state_alone() -> None:
    before = state(3)
    kept = digest(before.params), digest(before.optimizer)
    after = step(before, before.params, Adam(0.1))
    assert after.round == 4
    assert digest(after.params) != kept[0]
    assert (digest(before.params), digest(before.optimizer)) == kept


def test_the_start_is_a_function_of_the_seed() -> None:
    starts = [begin(learner("maml", "linear", "binary"), Adam(0.1), seed) for seed in (1, 1, 2)]
    assert_same(starts[0], starts[1])
    assert digest(starts[0].params) != digest(starts[2].params)
    assert starts[0].round == 0


def test_a_step_out_of_the_finite_numbers_is_an_error_that_names_the_round() -> None:
    before = TrainingState(6, {"w": torch.zeros(2)}, SGD(1.0).init({"w": torch.zeros(2)}))
    with pytest.raises(NumericalError, match=r"round 7: .*smaller outer rate"):
        step(before, {"w": torch.tensor([1.0, float("inf")])}, SGD(1.0))
