"""The pages for operators, hospitals and data protection name what is there: commands, tests, files."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main

from clinimeta.client.config import Home as SiteHome
from clinimeta.server.config import Home as CoordinatorHome
from clinimeta.simulations.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/hospital-it.md", "docs/operator.md", "docs/data-protection.md", "docs/console.md")


def typed(page: str) -> list[str]:
    """The commands of a page: the lines of its blocks, and what stands in backticks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    found = [*blocks.splitlines(), *spans]
    return [line.strip() for line in found if line.strip().startswith("clinimeta ")]


def fits(line: str) -> None:
    """Fail unless the CLI has the command, and the command the options."""
    words = shlex.split(line.partition(" > ")[0].partition("  #")[0])[1:]
    found: click.Command = typer.main.get_command(app)
    while isinstance(found, click.Group) and words and words[0] in found.commands:
        found = found.commands[words.pop(0)]
    assert not (isinstance(found, click.Group) and words and not words[0].startswith("-")), line
    options = {name for option in found.params for name in option.opts} | {"--help"}
    unknown = {word for word in words if word.startswith("--")} - options
    assert not unknown, f"{line}: {unknown}"


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_every_command_of_a_page_exists_with_its_options(page: str) -> None:
    commands = typed(page)
    assert len(commands) >= 3
    for line in commands:
        fits(line)


@pytest.mark.parametrize("line", ["clinimeta site upp", "clinimeta site up --hom x", "clinimeta nothing"])
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        fits(line)


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize(("page", "home"), [(PAGES[0], SiteHome), (PAGES[1], CoordinatorHome)])
def test_the_backup_table_names_every_file_of_the_folder(page: str, home: type) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = [name for name in vars(home) if isinstance(vars(home)[name], property)]
    assert len(names) > 8
    for name in names:
        file = getattr(home(Path("folder")), name).name
        assert re.search(rf"`(state/)?{re.escape(file)}[/`]", text), f"{name}: {file}"
