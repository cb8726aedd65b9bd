"""What came out of an experiment, for those who will use it: model, manifest, model card."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.errors import UserError
from clinimeta.common.models import MODELS
from clinimeta.common.plan import Plan
from clinimeta.common.study import Study, read_study
from clinimeta.common.trained_model import TrainedModel, read_model
from clinimeta.server import experiments
from clinimeta.server.config import Home
from clinimeta.server.database import Database
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary

MODEL, MANIFEST, CARD = "model.safetensors", "manifest.json", "MODEL_CARD.md"


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over hospitals, in the last round: lowest, middle, highest."""

    metric: str
    lowest: float
    median: float
    highest: float
    hospitals: int


def export(home: Home, database: Database, name: str, out: Path) -> list[Path]:
    """Write model, manifest and model card to a new folder.

    Raises:
        UserError: the experiment is not finished, or the folder is not new.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("the output folder is not empty", where=str(out), remedy="choose another")
    files = packed(home, database, name)
    out.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (out / file).write_bytes(content)
    return [out / file for file in files]


def packed(home: Home, database: Database, name: str) -> dict[str, bytes]:
    """Model, manifest and model card of an experiment, by file name.

    Raises:
        UserError: it is not finished.
    """
    found = experiments.find(database, name)
    if found.state != "finished":
        raise UserError(
            "there is no model yet",
            found=f"{name}: {found.state}",
            remedy=f"wait for it: clinimeta show {name}",
        )
    run_dir = RunDir.open(home.experiments / name)
    study = read_study(run_dir.study_toml(), str(run_dir.path / "study.toml"))
    model = read_model(run_dir.path)
    data = model.to_bytes()
    manifest = {**run_dir.manifest(), "model_sha256": hashlib.sha256(data).hexdigest()}
    card = model_card(study, model, manifest, run_dir.rounds())
    return {
        MODEL: data,
        MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode(),
        CARD: card.encode(),
    }


def model_card(
    study: Study, model: TrainedModel, manifest: Mapping[str, Any], rounds: Sequence[RoundSummary]
) -> str:
    """The model card: where the model is from, what it may be used for, how it did, how to adapt it."""
    sites: Mapping[str, Mapping[str, Any]] = manifest["sites"]
    environment = Environment(
        loader=PackageLoader("clinimeta.server"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 (Markdown)
    )
    return environment.get_template("model_card.md").render(
        study=study,
        plan=model.plan,
        manifest=manifest,
        sites=sites,
        algorithm=ALGORITHMS.summary(model.plan.algorithm.name),
        architecture=MODELS.summary(model.plan.model.name),
        size=sum(tensor.numel() for tensor in model.params.values()),
        privacy=privacy_words(model.plan),
        rounds=rounds,
        spreads=spreads(rounds),
        temperatures=model.temperatures,
    )


def spreads(rounds: Sequence[RoundSummary]) -> tuple[Spread, ...]:
    """How each metric differs between hospitals in the last round; nothing where only sums were seen."""
    by_site = rounds[-1].by_site if rounds else {}
    names = sorted({name for measured in by_site.values() for name in measured})
    columns = {name: [measured[name] for measured in by_site.values() if name in measured] for name in names}
    return tuple(
        Spread(name, min(values), statistics.median(values), max(values), len(values))
        for name, values in columns.items()
    )


def privacy_words(plan: Plan) -> str:
    """What a patient of the training was promised, in a sentence or two."""
    protection = plan.protection
    seen = {
        "plain": "The coordinator saw each hospital's meta-gradient in clear.",
        "quantised": "The coordinator saw each hospital's meta-gradient, clipped and rounded.",
        "masked": "Secure aggregation: the coordinator saw sums over hospitals only.",
    }[protection.answers]
    if not protection.epsilon:
        return f"{seen} No noise was added: the model may tell of its patients (no differential privacy)."
    return (
        f"{seen} Differential privacy: epsilon {protection.epsilon:g} at delta {protection.delta:g} for each "
        f"patient, over all rounds (noise {protection.noise_multiplier:.3g} times a patient's reach)."
    )
