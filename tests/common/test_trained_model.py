"""A model file comes back as it was, or is refused with words that help; nothing in between."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from clinimeta.common.errors import RunDirError
from clinimeta.common.params import digest
from clinimeta.common.rng import generator
from clinimeta.common.study import Choice, Plan, read_study
from clinimeta.common.trained_model import FORMAT, TrainedModel, read_model

STUDY = """
name = "small"
primary = "maml"
data = { name = "csv_folder" }
model = { name = "mlp", hidden = [4] }
arms = [{ name = "maml", algorithm = { name = "maml", inner_rate = 0.2 } }]

[table]
target = "sick"
classes = ["no", "yes"]
columns = [{ name = "age", center = 50.0, scale = 10.0 }, { name = "sex", kind = "binary" }]
"""


def plan() -> Plan:
    study = read_study(STUDY, "study.toml")
    return study.plan(study.arms[0], seed=3)


@pytest.fixture
def model() -> TrainedModel:
    return TrainedModel(plan(), plan().learner().init(generator("trained")), {1: 1.7, 5: 1.0})


def write(folder: Path, data: bytes) -> Path:
    (folder / "model.safetensors").write_bytes(data)
    return folder / "model.safetensors"


def refused(path: Path) -> RunDirError:
    with pytest.raises(RunDirError) as caught:
        read_model(path)
    assert caught.value.where
    assert caught.value.remedy
    assert caught.value.__cause__ is None
    return caught.value


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_model_file_is_read_back_to_the_bit(tmp_path: Path, model: TrainedModel, named: str) -> None:
    file = write(tmp_path, model.to_bytes())
    read = read_model(file if named == "file" else tmp_path)
    assert digest(read.params) == digest(model.params)
    assert read.plan == model.plan
    assert read.plan.digest == model.plan.digest
    assert dict(read.temperatures) == {1: 1.7, 5: 1.0}


def test_equal_models_are_equal_files(model: TrainedModel) -> None:
    assert len({model.to_bytes() for _ in range(20)}) == 1


def test_a_model_without_temperatures_is_a_model(tmp_path: Path, model: TrainedModel) -> None:
    plain = TrainedModel(model.plan, model.params, {})
    assert dict(read_model(write(tmp_path, plain.to_bytes())).temperatures) == {}


def test_a_view_of_a_tensor_is_written_whole(tmp_path: Path, model: TrainedModel) -> None:
    views = {name: tensor.t().contiguous().t() for name, tensor in model.params.items()}
    assert any(not view.is_contiguous() for view in views.values())
    read = read_model(write(tmp_path, TrainedModel(model.plan, views, {}).to_bytes()))
    assert digest(read.params) == digest(model.params)


# What is not there


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "model.safetensors")
    assert error.where == str(tmp_path / "model.safetensors")
    assert error.found == "no such file"


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert (error.found, error.remedy) == ("no such file", "check the path")


def test_an_unfinished_run_is_told_how_to_finish(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    error = refused(tmp_path)
    assert error.found == "a run that is not finished"
    assert error.remedy == f"clinimeta simulate --resume {tmp_path}"


# What is not ours, or no longer whole


def test_every_truncation_is_refused(tmp_path: Path, model: TrainedModel) -> None:
    data = model.to_bytes()
    for size in (*range(0, len(data) - 1, 97), len(data) - 1):
        refused(write(tmp_path, data[:size]))
    refused(write(tmp_path, data + b"\0"))


def test_a_changed_byte_is_refused_wherever_it_is(tmp_path: Path, model: TrainedModel) -> None:
    data = model.to_bytes()
    for place in (*range(0, len(data), 41), len(data) - 1):
        refused(write(tmp_path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]))


@pytest.mark.parametrize("content", [b"", b"age,sex\n63,1\n", b"\x80\x04\x95pickle", b"\0" * 64])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    error = refused(write(tmp_path, content))
    assert error.what == "this is not a model that clinimeta can use"
    assert FORMAT in error.expected


def metadata_of(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: a length, then JSON."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header["__metadata__"])


def relabelled(model: TrainedModel, change: Callable[[dict[str, str]], object]) -> bytes:
    """The same tensors with other metadata."""
    metadata = metadata_of(model.to_bytes())
    change(metadata)
    data: bytes = safetensors.torch.save(dict(model.params), metadata or None)
    return data


def test_the_same_tensors_with_the_same_metadata_are_the_same_model(
    tmp_path: Path, model: TrainedModel
) -> None:
    read = read_model(write(tmp_path, relabelled(model, lambda metadata: metadata)))
    assert digest(read.params) == digest(model.params)


LABELS: dict[str, Callable[[dict[str, str]], object]] = {
    "none": lambda metadata: metadata.clear(),
    "of another version": lambda metadata: metadata.update(
        {key: text.replace(FORMAT, "clinimeta model 2") for key, text in metadata.items()}
    ),
    "cut short": lambda metadata: metadata.update({key: text[:-1] for key, text in metadata.items()}),
    "with nothing in them": lambda metadata: metadata.update(dict.fromkeys(metadata, "")),
    "that are no objects": lambda metadata: metadata.update(
        {key: "[1]" for key, text in metadata.items() if text.startswith("{")}
    ),
    "that lack a value": lambda metadata: metadata.update(
        {key: text.replace("1.7", "null") for key, text in metadata.items()}
    ),
    "of another plan": lambda metadata: metadata.update(
        {key: text.replace("inner_rate", "inner_rat") for key, text in metadata.items()}
    ),
}


@pytest.mark.parametrize("change", LABELS.values(), ids=list(LABELS))
def test_tensors_with_labels_that_are_not_ours_are_refused(
    tmp_path: Path, model: TrainedModel, change: Callable[[dict[str, str]], object]
) -> None:
    data = relabelled(model, change)
    assert data != model.to_bytes()
    error = refused(write(tmp_path, data))
    assert error.what == "this is not a model that clinimeta can use"
    assert error.where == str(tmp_path / "model.safetensors")


def test_every_part_of_the_label_is_needed(tmp_path: Path, model: TrainedModel) -> None:
    for key in metadata_of(model.to_bytes()):
        refused(write(tmp_path, relabelled(model, lambda metadata, key=key: metadata.pop(key))))


def with_plan(**changes: Any) -> Callable[[TrainedModel], TrainedModel]:
    return lambda model: replace(model, plan=model.plan.model_copy(update=changes))


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[TrainedModel], TrainedModel]:
    return lambda model: replace(model, params={**model.params, name: tensor})


def with_temperature(value: float) -> Callable[[TrainedModel], TrainedModel]:
    return lambda model: replace(model, temperatures={5: value})


UNFIT: dict[str, Callable[[TrainedModel], TrainedModel]] = {
    "an algorithm that is not there": with_plan(algorithm=Choice(name="mamba")),
    "a hyperparameter out of range": with_plan(algorithm=Choice(name="maml", inner_rate=-1.0)),
    "another model's weights": with_plan(model=Choice(name="linear")),
    "a temperature of zero": with_temperature(0.0),
    "a negative temperature": with_temperature(-1.0),
    "a temperature that is no number": with_temperature(float("nan")),
    "a temperature without end": with_temperature(float("inf")),
    "a tensor too many": with_tensor("extra", torch.zeros(1)),
    "a tensor too few": lambda model: replace(model, params={"layer0.bias": model.params["layer0.bias"]}),
    "another shape": with_tensor("layer0.bias", torch.zeros(5)),
    "another number type": with_tensor("layer0.bias", torch.zeros(4, dtype=torch.int64)),
    "a weight that is not finite": with_tensor("layer0.bias", torch.tensor([0.0, float("nan"), 0.0, 0.0])),
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=list(UNFIT))
def test_a_model_that_does_not_fit_its_own_plan_is_refused(
    tmp_path: Path, model: TrainedModel, change: Callable[[TrainedModel], TrainedModel]
) -> None:
    error = refused(write(tmp_path, change(model).to_bytes()))
    assert error.what == "this is not a model that clinimeta can use"
    assert FORMAT in error.expected
