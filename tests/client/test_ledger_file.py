"""What is done to a ledger's file is seen; verifying it needs no network, and changes nothing."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import (
    COORDINATOR,
    LENGTH,
    OTHER_HUB,
    SITE,
    Receipts,
    chain,
    edit,
    entry,
    file_of,
    receipts_for,
    receive,
    without_types,
)

from clinimeta.client.ledger_check import Findings, read, read_receipts, verify
from clinimeta.common.errors import LedgerFileError

IN_A_FILE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = range(1, LENGTH + 1)
WITNESSED = 3
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**40), 2**40),
    st.integers(-2, LENGTH + 2),
    st.floats(allow_nan=False),
    st.text(max_size=9),
    st.binary(max_size=70),
)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Fresh copies of a ledger of six records, the third of which has a receipt."""
    folder = tmp_path_factory.mktemp("ledgers")
    made = file_of(folder / "made", witnessed=[WITNESSED]).path
    return (Path(shutil.copyfile(made, folder / str(number))) for number in count())


def verified(path: Path, more: Receipts | None = None) -> Findings:
    return verify(path, SITE.public, COORDINATOR.public, more)


@given(number=st.sampled_from(NUMBERS), changed=st.integers(-3, LENGTH + 40))
@IN_A_FILE
def test_a_number_that_was_changed_is_named(copies: Iterator[Path], number: int, changed: int) -> None:
    path = next(copies)
    if changed in NUMBERS and changed != number:
        edit(path, "DELETE FROM records WHERE number = ?", changed)
    edit(path, "UPDATE records SET number = ? WHERE number = ?", changed, number)
    findings = verified(path)
    if changed == number:
        assert findings.intact
    else:
        assert findings.broken == (1 if changed < 1 else min(changed, number))


@given(
    column=st.sampled_from(["previous", "content", "hash", "signature"]),
    number=st.sampled_from(NUMBERS),
    value=VALUES,
)
@IN_A_FILE
def test_a_value_of_any_type_in_any_column_is_named(
    copies: Iterator[Path], column: str, number: int, value: object
) -> None:
    path = next(copies)
    without_types(path)
    assert verified(path).intact
    edit(path, f"UPDATE records SET {column} = ? WHERE number = ?", value, number)  # noqa: S608
    assert verified(path).broken == number


@given(number=st.sampled_from(NUMBERS), value=VALUES)
@IN_A_FILE
def test_a_number_of_any_type_or_a_second_time_is_named(
    copies: Iterator[Path], number: int, value: object
) -> None:
    path = next(copies)
    without_types(path)
    edit(path, "UPDATE records SET number = ? WHERE number = ?", value, number)
    findings = verified(path)
    if not isinstance(value, int) or value < 1:
        assert findings.broken == 1
    elif value == number:
        assert findings.intact
    else:  # further down there are then two of this number, of which either may be read first
        assert findings.broken in ({number} if value > number else {value, value + 1})


@pytest.mark.parametrize(
    ("column", "same"),
    [
        ("number", "CAST(number AS TEXT)"),
        ("previous", "CAST(previous AS TEXT)"),
        ("content", "CAST(content AS BLOB)"),
        ("hash", "hex(hash)"),
        ("signature", "CAST(signature AS TEXT)"),
    ],
)
def test_the_same_value_in_another_type_is_named(copies: Iterator[Path], column: str, same: str) -> None:
    path = next(copies)
    without_types(path)
    edit(path, f"UPDATE records SET {column} = {same} WHERE number = 4")  # noqa: S608 (fixed names)
    assert verified(path).broken == (1 if column == "number" else 4)


@given(column=st.sampled_from(["number", "hash", "signature"]), value=VALUES)
@IN_A_FILE
def test_a_receipt_that_was_changed_vouches_for_nothing(
    copies: Iterator[Path], column: str, value: object
) -> None:
    path = next(copies)
    without_types(path)
    edit(path, f"UPDATE receipts SET {column} = ?", value)  # noqa: S608 (a fixed name)
    findings = verified(path)
    same = column == "number" and type(value) is int and value == WITNESSED
    assert (findings.intact, findings.complete) == (True, same)
    assert findings.witnessed == (WITNESSED if same else 0)


def test_text_that_is_no_text_is_a_changed_record(copies: Iterator[Path]) -> None:
    path = next(copies)
    edit(path, "UPDATE records SET content = CAST(x'ff00fe' AS TEXT) WHERE number = 4")
    assert verified(path).broken == 4


def test_verifying_writes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a folder #1 50%?" / "ledger.sqlite"
    path.parent.mkdir()
    file_of(path, witnessed=[3])
    before = path.read_bytes()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        findings = verified(path)
    finally:
        path.parent.chmod(0o700)
    assert (findings.records, findings.intact, findings.witnessed) == (LENGTH, True, 3)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["ledger.sqlite"]


def test_a_copy_of_the_one_file_is_whole_while_the_ledger_is_in_use(tmp_path: Path) -> None:
    ledger = file_of(tmp_path / "ledger", 2)
    with sqlite3.connect(ledger.path) as reader:  # somebody looks at it, as a monitor or a backup does
        assert reader.execute("SELECT count(*) FROM records").fetchone() == (2,)
        made = ledger.append(entry(3))
        assert receive(ledger, made)
        shutil.copyfile(ledger.path, tmp_path / "copy")
    findings = verified(tmp_path / "copy")
    assert (findings.records, findings.intact, findings.witnessed) == (3, True, 3)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy", "ledger"]


HALF = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size=1")
database.execute("BEGIN IMMEDIATE")
for number in range(100, 400):
    database.execute("INSERT INTO records VALUES (?, x'00', ?, x'00', x'00')", (number, "x" * 4000))
os.kill(os.getpid(), 9)
"""


def test_what_a_crash_left_half_written_is_verified_without_touching_it(tmp_path: Path) -> None:
    path = file_of(tmp_path / "ledger").path
    done = subprocess.run([sys.executable, "-c", HALF, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    journal = Path(f"{path}-journal")
    before = path.read_bytes(), journal.read_bytes()
    assert len(before[0]) > 400_000, "records that were never committed are in the file"
    findings = verified(path)
    assert (findings.records, findings.intact) == (LENGTH, True)
    assert (path.read_bytes(), journal.read_bytes()) == before


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(b"not a database" * 100)
    (tmp_path / "empty").touch()
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE patients (name TEXT)")
    for name in ("words", "empty", "other", "missing", "."):
        with pytest.raises(LedgerFileError) as refused:
            read(tmp_path / name)
        assert refused.value.where == str(tmp_path / name)
    assert not (tmp_path / "missing").exists()


def test_receipts_from_outside_find_a_truncated_file(tmp_path: Path) -> None:
    path = file_of(tmp_path / "ledger", witnessed=NUMBERS).path
    _, receipts = read(path)
    assert sorted(receipts) == list(NUMBERS)
    lines = [f"{number} {digest.hex()} {by.hex()}\n" for number, (digest, by) in receipts.items()]
    (tmp_path / "receipts.txt").write_text("".join([*lines, "\n"]))
    more = read_receipts(tmp_path / "receipts.txt")
    assert more == receipts
    edit(path, "DELETE FROM records WHERE number > 4")
    assert verified(path).missing == (5, 6)
    edit(path, "DELETE FROM receipts WHERE number > 4")
    assert verified(path).complete, "nothing in the file tells of records 5 and 6 any more"
    assert verified(path, more).missing == (5, 6)


def test_foreign_receipts_from_outside_do_not_displace_those_in_the_file(tmp_path: Path) -> None:
    path = file_of(tmp_path / "ledger", witnessed=[5]).path
    foreign = receipts_for(chain(), 5, by=OTHER_HUB)
    edit(path, "DELETE FROM records WHERE number > 4")
    assert verified(path, foreign).missing == (5,)


@pytest.mark.parametrize("line", ["1 ab", "1 ab cd ef", "x ab cd", "1 zz cd", "1 ab ü"])
def test_what_is_no_list_of_receipts_is_said(tmp_path: Path, line: str) -> None:
    (tmp_path / "receipts.txt").write_text(line)
    with pytest.raises(LedgerFileError, match="these are no receipts"):
        read_receipts(tmp_path / "receipts.txt")
    with pytest.raises(LedgerFileError, match="these are no receipts"):
        read_receipts(tmp_path / "missing.txt")
