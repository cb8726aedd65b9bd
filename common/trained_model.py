"""A trained model as one file: meta-parameters, the plan they belong to, and how sure they may be.

A safetensors file whose metadata holds the plan, so that a hospital needs this file and nothing else.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch

from clinimeta.common.errors import RunDirError, StudyError
from clinimeta.common.params import digest, is_finite, like
from clinimeta.common.plan import Plan
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params

FORMAT = "clinimeta model 1"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a new hospital adapts. `temperatures`: size of support set -> temperature of the outputs."""

    plan: Plan
    params: Params
    temperatures: Mapping[int, float]

    def to_bytes(self) -> bytes:
        """The file's content."""
        header = {
            "format": FORMAT,
            "plan": self.plan.canonical().decode(),
            "temperatures": {str(shots): t for shots, t in sorted(self.temperatures.items())},
            "sha256": self._digest(),
        }
        # One key only: safetensors writes several in no fixed order, and equal models are equal files.
        metadata = {"clinimeta": json.dumps(header, sort_keys=True)}
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.params.items()}
        data: bytes = safetensors.torch.save(tensors, metadata)
        return data

    def _digest(self) -> str:
        """SHA-256 over everything in the file, so that no change of it goes unnoticed."""
        temperatures = json.dumps(sorted(self.temperatures.items())).encode()
        return hashlib.sha256(
            self.plan.canonical() + b"|" + temperatures + b"|" + digest(self.params).encode()
        ).hexdigest()


def read_model(path: Path) -> TrainedModel:
    """Read a model file, or the one in a run directory.

    Raises:
        RunDirError: it is missing, damaged, or not one of ours.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        unfinished = path.is_dir() and (path / "study.toml").is_file()
        raise RunDirError(
            "there is no trained model here",
            where=str(file),
            found="a run that is not finished" if unfinished else "no such file",
            expected="the folder of a finished run, or a model.safetensors",
            remedy=f"clinimeta simulate --resume {path}" if unfinished else "check the path",
        )
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})["clinimeta"])
            params = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        if header["format"] != FORMAT:
            raise ValueError("format")
        plan = Plan.from_bytes(header["plan"].encode())
        temperatures = {int(k): float(t) for k, t in header["temperatures"].items()}
        model = TrainedModel(plan, params, temperatures)
        if header["sha256"] != model._digest() or not _is_sound(model):
            raise ValueError("changed")
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        StudyError,
    ):
        raise RunDirError(
            "this is not a model that clinimeta can use",
            where=str(file),
            expected=f"a '{FORMAT}' file, unchanged, made by this version or an older one",
            remedy="copy the file again from the run directory",
        ) from None
    return model


def _is_sound(model: TrainedModel) -> bool:
    """Whether the parameters fit the plan's learner, and everything is a number that can be used."""
    template = model.plan.learner().init(generator("template"))
    return (
        like(model.params, template)
        and is_finite(model.params)
        and all(math.isfinite(t) and t > 0 for t in model.temperatures.values())
    )
