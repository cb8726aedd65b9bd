"""Models: what finished runs made, their model cards and files; checkpoints, and going on from them."""

from dataclasses import dataclass

from clinimeta.common.errors import UserError
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen
from clinimeta.server import views
from clinimeta.server.console.base import Console
from clinimeta.server.export import packed

RUNS = 200


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run can go on from."""

    round: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What there is of a run: its newest checkpoints, and whether it has a model."""

    run: str
    study: str
    state: str
    round: int
    rounds: int
    has_model: bool
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, slots=True)
class Models:
    """Runs that left something, the newest first."""

    runs: tuple[Kept, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its card (Markdown), and its files with their sizes."""

    run: str
    card: str
    files: dict[str, int]


def models_screen(console: Console, _who: Who) -> Models:
    """What the last runs left."""
    with console.database.engine.connect() as connection:
        lines = views.runs(connection, limit=RUNS)
    found = []
    for line in lines:
        folder = console.home.experiments / line.id
        checkpoints = tuple(
            Checkpoint(int(path.stem.partition("-")[2]), path.stat().st_size)
            for path in sorted(folder.glob("trainings/*/round-*.safetensors"))
        )
        has_model = line.state == "finished" and (folder / "model.safetensors").exists()
        if has_model or checkpoints:
            found.append(
                Kept(line.id, line.study, line.state, line.round, line.rounds, has_model, checkpoints)
            )
    return Models(tuple(found))


def model_screen(console: Console, _who: Who, run: str) -> Model:
    """A finished run's model."""
    files = packed(console.home, console.database, run)
    card = files["MODEL_CARD.md"].decode()
    return Model(run, card, {name: len(data) for name, data in files.items()})


def model_file(console: Console, run: str, name: str) -> bytes:
    """One file of a model's export.

    Raises:
        UserError: the run is not finished, or has no such file.
    """
    files = packed(console.home, console.database, run)
    if name not in files:
        raise UserError("there is no such file", found=repr(name), expected=", ".join(files))
    return files[name]


SCREENS = (
    Screen("/models", May.READ, "Models", models_screen, "models.html", nav=True),
    Screen("/models/{run}", May.READ, "Model", model_screen, "model.html"),
)
