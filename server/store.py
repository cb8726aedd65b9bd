"""The run directory: study, manifest, metrics, checkpoints, model. Nothing in it is ever half written.

study.toml           the study as it ran, complete
manifest.json        versions, seeds, data hashes, sites' row ranges, what came out
metrics.jsonl        a line a round
model.safetensors    the primary arm's meta-parameters, with all that a new hospital needs to adapt them
trainings/NAME/      round-NNNNN.safetensors, a checkpoint each round (the newest are kept)
results.json         what was measured
report.html          for people
events.jsonl         the log: sites, rounds and counts only
example/             of an invented federation: tables to try `clinimeta adapt` on
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from clinimeta.common.errors import RunDirError
from clinimeta.common.files import sync, write_atomically
from clinimeta.common.params import part, prefixed
from clinimeta.common.typing import Params
from clinimeta.server.training import RoundSummary, TrainingState

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run's directory on disk."""

    path: Path

    @staticmethod
    def create(path: Path, study_toml: str) -> "RunDir":
        """Start a new run in a folder that is empty or does not exist.

        Raises:
            RunDirError: something is there already, or the folder cannot be written.
        """
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise RunDirError(
                    "the run directory is not empty",
                    where=str(path),
                    expected="a new or empty folder",
                    remedy=f"choose another with --out, or go on with a stopped run: --resume {path}",
                )
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "study.toml", study_toml.encode())
        except OSError as error:
            raise RunDirError(
                "the run directory cannot be written",
                where=str(path),
                found=error.strerror or "an error of the operating system",
                remedy="choose another with --out, or mend its permissions",
            ) from None
        return RunDir(path)

    @staticmethod
    def open(path: Path) -> "RunDir":
        """An existing run.

        Raises:
            RunDirError: the folder is missing or holds no run.
        """
        if not os.path.isfile(path / "study.toml"):  # which is false, not an error, for an impossible name
            raise RunDirError(
                "this is not a run directory",
                where=str(path),
                found="no study.toml in it" if os.path.isdir(path) else "no such folder",
                expected="a folder that `clinimeta simulate` made",
                remedy="check the path; `clinimeta simulate` prints it at its end",
            )
        return RunDir(path)

    def study_toml(self) -> str:
        """The study's text."""
        return (self.path / "study.toml").read_text(encoding="utf-8")

    def manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            RunDirError: there is none yet, or it is damaged.
        """
        try:
            manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            manifest = None
        if not isinstance(manifest, dict):
            raise RunDirError(
                "the run has no readable manifest",
                where=str(self.path / "manifest.json"),
                remedy=f"finish the run: clinimeta simulate --resume {self.path}",
            )
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        self.write_text("manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the run."""
        write_atomically(self.path / name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a binary file of the run."""
        write_atomically(self.path / name, data)

    def checkpoint(self, training: str, state: TrainingState, plan: str) -> None:
        """Keep the state after a round; `plan` is the digest of the plan that it belongs to."""
        folder = self._folder(training)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"round-{state.round:05d}.safetensors", _pack(state, plan))
        for old in self._checkpoints(training)[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def latest(self, training: str, plan: str) -> TrainingState | None:
        """The newest checkpoint of a training, or None where there is none yet.

        Raises:
            RunDirError: it belongs to another plan, or is damaged.
        """
        checkpoints = self._checkpoints(training)
        return _unpack(checkpoints[-1], plan) if checkpoints else None

    def append_round(self, summary: RoundSummary) -> None:
        """One more line in `metrics.jsonl`, on disk before this returns."""
        with (self.path / "metrics.jsonl").open("ab") as file:
            file.write(json.dumps(asdict(summary)).encode() + b"\n")
            sync(file)

    def rounds(self) -> list[RoundSummary]:
        """All rounds so far; a last line that a crash cut short is left out."""
        return [summary for summary in map(_parse_round, self._lines()) if summary is not None]

    def forget_rounds_after(self, training: str, number: int) -> None:
        """Drop the lines of rounds that are about to be run again (and a torn last line)."""
        kept = [s for s in self.rounds() if s.training != training or s.round <= number]
        text = "".join(json.dumps(asdict(summary)) + "\n" for summary in kept)
        self.write_text("metrics.jsonl", text)

    def _lines(self) -> list[bytes]:
        path = self.path / "metrics.jsonl"
        return path.read_bytes().split(b"\n") if path.exists() else []

    def _checkpoints(self, training: str) -> list[Path]:
        """The oldest first, by number however many digits it has."""
        found = self._folder(training).glob("round-*.safetensors")
        ours = [path for path in found if path.stem.removeprefix("round-").isdecimal()]
        return sorted(ours, key=lambda path: int(path.stem.removeprefix("round-")))

    def _folder(self, training: str) -> Path:
        return self.path / "trainings" / training


def _tensors(params: Params) -> dict[str, Any]:
    return {name: tensor.detach().contiguous() for name, tensor in params.items()}


def _pack(state: TrainingState, plan: str) -> bytes:
    parts = {"params": state.params, "optimizer": state.optimizer, "gate": state.gate}
    tensors = {name: t for key, params in parts.items() for name, t in prefixed(params, key).items()}
    metadata = {"round": str(state.round), "plan": plan}
    data: bytes = safetensors.torch.save(_tensors(tensors), metadata)
    return data


def _unpack(path: Path, plan: str) -> TrainingState:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        number = int(metadata["round"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError):
        raise RunDirError(
            "a checkpoint is damaged",
            where=str(path),
            expected="a safetensors file that this run wrote",
            remedy="delete this one file and resume: the checkpoint before it is used",
        ) from None
    if metadata.get("plan") != plan:
        raise RunDirError(
            "a checkpoint belongs to another plan",
            where=str(path),
            expected="the study of this run directory, unchanged",
            remedy="restore study.toml, or start a new run",
        )
    return TrainingState(number, *(part(tensors, key) for key in ("params", "optimizer", "gate")))


def _parse_round(line: bytes) -> RoundSummary | None:
    try:
        values = json.loads(line)
        return RoundSummary(**{**values, "silent": tuple(values["silent"])})
    except (ValueError, TypeError, KeyError):
        return None
