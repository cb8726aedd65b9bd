"""The building stands as ARCHITECTURE.md says."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("common", "client", "server", "simulations")
KNOW_FLOWER = {
    *(f"common/{name}.py" for name in ("flower_records", "flower_tasks")),
    *(f"client/{name}.py" for name in ("app", "daemon", "gate", "hospital", "runner", "supernode")),
    *(f"server/{name}.py" for name in ("app", "bundle", "control", "grid", "link", "node_auth", "runner")),
    "server/superlink.py",
    *(f"simulations/{name}.py" for name in ("loopback", "ray_engine")),
}


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_flower_is_imported_in_its_few_modules_only() -> None:
    know = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(name.split(".")[0] == "flwr" for name in imported(path))
    }
    assert know == KNOW_FLOWER


def test_nothing_can_unpickle() -> None:
    for path in sources():
        assert not imported(path) & {"pickle", "shelve", "dill", "cloudpickle", "joblib"}, path
        text = path.read_text(encoding="utf-8").replace("safetensors.torch.load(", "")
        assert "torch.load(" not in text, path


def test_every_package_is_listed_for_the_installer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        "clinimeta." + str(path.parent.relative_to(ROOT)).replace("/", ".")
        for path in sources()
        if path.name == "__init__.py"
    }
    assert set(settings["tool"]["setuptools"]["packages"]) == found


def test_every_file_says_first_what_it_is_for() -> None:
    for path in sources():
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert doc, path
        first = doc.split("\n\n")[0]
        assert first.rstrip().endswith((".", ":", "?")), f"{path}: {first}"


def test_no_file_holds_two_ideas() -> None:
    assert {
        str(p.relative_to(ROOT)): n for p in sources() if (n := len(p.read_text().splitlines())) > 400
    } == {}


@pytest.mark.parametrize("module", ["clinimeta.simulations.cli", "clinimeta.client.cli"])
def test_help_does_not_wait_for_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'flwr', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ci_runs_the_readmes_test_command_verbatim() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(re.findall(r"^python3 -m venv \.venv .*pytest$", readme, flags=re.MULTILINE)) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_commands_exist() -> None:
    from clinimeta.simulations import cli

    known = {
        c.name or c.callback.__name__.replace("_", "-") for c in cli.app.registered_commands if c.callback
    }
    known |= {group.name for group in cli.app.registered_groups}
    used = set(
        re.findall(r"(?:^|`|/)clinimeta ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    )
    assert used <= known
    assert {"simulate", "adapt", "studies"} <= used


def test_every_key_of_a_study_is_explained() -> None:
    from clinimeta.common.protection import Protection
    from clinimeta.common.safeguards import AggregationSettings, GateSettings
    from clinimeta.common.study import Arm, Evaluation, Faults, Published, Question, Study, Training
    from clinimeta.common.tasks.sampler import Episodes
    from clinimeta.common.tasks.schema import Column, Schema

    text = (ROOT / "docs" / "studies.md").read_text()
    parts = (Study, Arm, Evaluation, Faults, Published, Question, Episodes, Schema, Column)
    for settings in (*parts, Training, AggregationSettings, GateSettings, Protection):
        for key in settings.model_fields:
            assert re.search(rf"\b{key}\b", text), (
                f"docs/studies.md does not explain {settings.__name__}.{key}"
            )
