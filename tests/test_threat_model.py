"""The threat model names its tests, and the tests that it names are there."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
TO_COME = "`(to come)`"
"""Stands where a protection is not part of this version yet."""
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of the table of adversaries."""
    section = TEXT.split("\n## Adversaries\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_named_test_exists() -> None:
    named = NAMED.findall(TEXT)
    assert len(named) > 20
    assert [(path, test) for path, test in named if not (ROOT / path).is_file()] == []
    assert [(path, test) for path, test in named if test not in functions_of(path)] == []


def test_every_adversary_has_a_test_or_says_that_it_is_to_come() -> None:
    for cells in rows():
        assert len(cells) == 6, cells
        adversary, capability, protected, by, tested, _residual = cells
        assert all((adversary, capability, protected, by)), cells
        leftover = NAMED.sub("", tested).replace(TO_COME, "").replace(",", "").strip()
        assert tested, f"{adversary}, {capability}: no test"
        assert not leftover, f"{adversary}, {capability}: {leftover}"


def test_the_mentioned_test_files_exist() -> None:
    assert all((ROOT / path).is_file() for path in re.findall(r"`(tests/[\w/]+\.py)(?:`|::)", TEXT))
