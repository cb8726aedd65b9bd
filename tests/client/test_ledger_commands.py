"""What a hospital types to look at its ledger changes nothing, and also works on a ledger that is damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ledgers import COORDINATOR, OTHER_HUB, edit, entry

from clinimeta.client.config import Home
from clinimeta.client.folder import make_home
from clinimeta.client.keys import identity
from clinimeta.client.ledger import Ledger
from clinimeta.common.receipts import checkpoint, receipt
from clinimeta.simulations.cli import app, run

Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = make_home(tmp_path / "site", address="hub:9443", data="p.csv", port=9543, health_port=9545)
    who = {"site": "ulm", "coordinator": "hub", "coordinator_key": COORDINATOR.public.hex()}
    made.enrolment.write_text(json.dumps(who))
    return made


@pytest.fixture
def ledger(home: Home) -> Ledger:
    own = identity(home, "ulm")
    made = Ledger(home.ledger, own)
    for number in range(1, 5):
        at = made.append(entry(number))
        assert made.receive(at, receipt(at, own.public, COORDINATOR), COORDINATOR.public)
    return made


@pytest.fixture
def typed(home: Home, capsys: pytest.CaptureFixture[str]) -> Typed:
    def say(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        told = ["site", *map(str, words), "--home", str(home.path)]
        code = run(lambda: app(args=told, standalone_mode=False))
        return code, "".join(capsys.readouterr())

    return say


def test_a_sound_ledger_is_shown_verified_and_certified_and_not_touched(
    ledger: Ledger, typed: Typed, tmp_path: Path
) -> None:
    before = ledger.path.read_bytes(), sorted(ledger.path.parent.iterdir())
    ledger.path.chmod(0o400)
    code, said = typed("ledger", "show", "--json", "--last", 3)
    shown = json.loads(said)
    assert code == 0
    assert [(one["number"], one["bytes"]) for one in shown] == [(2, 1002), (3, 1003), (4, 1004)]
    code, said = typed("ledger", "show")
    assert (code, said.count("[sepsis, round")) == (0, 4)
    code, said = typed("ledger", "verify")
    assert code == 0
    assert "all 4 records are as they were written" in said
    assert "word alone" not in said
    assert typed("report")[1].startswith("sepsis: 4 sums and 0 other messages, 0 refused, 3.9 KiB")
    assert typed("ledger", "certificate", "--out", tmp_path / "page.html")[0] == 0
    assert "No patient's record has left" in (tmp_path / "page.html").read_text()
    assert (ledger.path.read_bytes(), sorted(ledger.path.parent.iterdir())) == before


def test_a_damaged_ledger_is_shown_as_far_as_it_can_be_read_and_called_damaged(
    ledger: Ledger, typed: Typed, tmp_path: Path
) -> None:
    edit(ledger.path, "UPDATE records SET content = 'x' WHERE number = 2")
    code, said = typed("ledger", "verify")
    assert code != 0
    assert "BROKEN at record 2: its content is not what was written" in said
    assert "keep the file as evidence" in said
    code, said = typed("ledger", "show")
    assert (code, said.count("[sepsis, round")) == (0, 3)
    assert "1 records cannot be read" in said
    assert typed("report")[0] == 0
    assert typed("ledger", "certificate", "--out", tmp_path / "page.html")[0] == 0
    assert "Do not rely on this page" in (tmp_path / "page.html").read_text()


def test_receipts_from_the_coordinator_are_held_against_the_file(
    ledger: Ledger, typed: Typed, tmp_path: Path
) -> None:
    for by, words in (
        (COORDINATOR, "INCOMPLETE: records that were there are missing: 9"),
        (OTHER_HUB, "UNKNOWN"),
    ):
        made = checkpoint(9, bytes(32), ledger.identity)
        signed = receipt(made, ledger.identity.public, by)
        (tmp_path / "receipts.txt").write_text(f"9 {made.hash.hex()} {signed.hex()}\n")
        code, said = typed("ledger", "verify", "--receipts", tmp_path / "receipts.txt")
        assert code != 0
        assert words in said


@pytest.mark.parametrize(
    "words", [("ledger", "show"), ("ledger", "verify"), ("ledger", "certificate", "--out", "x"), ("report",)]
)
def test_a_ledger_that_is_not_there_is_not_made_nor_taken_for_an_empty_one(
    home: Home, typed: Typed, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.path)
    code, said = typed(*words)
    assert code != 0
    assert "there is no ledger" in said
    assert not home.ledger.exists()
