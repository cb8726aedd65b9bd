"""The outbound ledger on disk: whole after a crash, one chain for any number of processes, or an error."""

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import COORDINATOR, OTHER_HUB, SITE, edit, entry, file_of, receive

from clinimeta.client.ledger import Cost, Entry, Ledger, Sent
from clinimeta.client.ledger_check import Findings, verify
from clinimeta.common.errors import LedgerFileError, UserError
from clinimeta.common.receipts import checkpoint, receipt

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", SITE)


def verified(ledger: Ledger) -> Findings:
    return verify(ledger.path, SITE.public, COORDINATOR.public)


WORDS, WHOLE = st.text(max_size=8), st.integers(0, 2**60)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SMALL = st.dictionaries(WORDS, WORDS | NUMBERS | st.lists(st.integers(), max_size=3), max_size=3)
SENT = st.tuples(WORDS, WORDS, st.lists(WHOLE, max_size=3).map(tuple), st.none() | NUMBERS, WHOLE, WORDS)


@given(
    words=st.lists(WORDS, min_size=8, max_size=8),
    number=st.none() | st.integers(0, 2**70),
    tensors=st.lists(SENT, max_size=2),
    numbers=SMALL,
    cost=st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS),
)
def test_an_entry_is_read_as_it_was_written(
    words: list[str], number: int | None, tensors: list[Any], numbers: dict[str, Any], cost: Any
) -> None:
    made = Entry(
        *words[:5],
        number,
        *words[5:],
        "policy",
        tuple(Sent(*one) for one in tensors),
        numbers,
        None if cost is None else Cost(*cost),
        7,
    )
    assert Entry.parse(made.canonical()) == made


def test_the_file_holds_what_was_appended(ledger: Ledger) -> None:
    made = [ledger.append(entry(number)) for number in range(1, 5)]
    assert receive(ledger, made[2])
    findings = verified(ledger)
    assert (findings.records, findings.intact, findings.witnessed) == (4, True, 3)
    assert [record.entry for record in ledger.records()] == [entry(number) for number in range(1, 5)]
    assert [record.number for record in ledger.records(last=2)] == [3, 4]
    assert ledger.path.stat().st_mode & 0o077 == 0
    assert [one.number for one in made] == [1, 2, 3, 4]
    assert all(one.is_of(SITE.public) for one in made)


def test_receipts_that_do_not_fit_are_not_kept(ledger: Ledger) -> None:
    made = ledger.append(entry(1))
    elsewhere = checkpoint(1, bytes(32), SITE)
    later = checkpoint(2, made.hash, SITE)
    unsigned = checkpoint(1, made.hash, OTHER_HUB)
    assert not receive(ledger, made, by=OTHER_HUB)
    assert not any(receive(ledger, one) for one in (elsewhere, later, unsigned))
    assert not ledger.receive(made, receipt(elsewhere, SITE.public, COORDINATOR), COORDINATOR.public)
    findings = verified(ledger)
    assert (findings.witnessed, findings.unread_receipts) == (0, 0)
    assert receive(ledger, made)
    assert receive(ledger, made), "the same again is no error"
    assert verified(ledger).witnessed == 1


def test_answers_of_a_day_are_those_made_from_the_table(ledger: Ledger) -> None:
    ledger.append(entry(1))
    ledger.append(entry(2, kind="Introduction"))
    ledger.append(entry(3, kind="Refusal", outcome="not_approved"))
    ledger.append(entry(4, kind="masked"))
    ledger.append(entry(5, at="2026-11-24T00:00:00+00:00"))
    ledger.append(entry(6, kind="Masking"))
    ledger.append(entry(7, kind="Quantised"))
    ledger.append(entry(8, kind="Calibration"))
    days = ("2026-11-23", "2026-11-24", "2026-11-25")
    assert [ledger.answers_on(day) for day in days] == [4, 1, 0]


APPENDING = """
import sys
from pathlib import Path
from ledgers import SITE, entry
from clinimeta.client.ledger import Ledger

path, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(path, SITE)
for time in range(times):
    print(ledger.append(entry(time % 60, run=name)).number, flush=True)
"""


def appending(path: Path, name: str, times: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDING, str(path), name, str(times)]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ends(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def test_processes_that_append_at_once_make_one_chain(tmp_path: Path) -> None:
    path, each = tmp_path / "ledger", 20
    processes = [appending(path, name, each) for name in ("one", "two")]
    for process in processes:
        assert ends(process)[1].readline() == "ready\n"
    for process in processes:  # both make the file, too
        ends(process)[0].write("go\n")
        ends(process)[0].flush()
    told = [int(number) for process in processes for number in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(told) == list(range(1, 2 * each + 1)), "no number twice, none left out"
    ledger = Ledger(path, SITE)
    assert verified(ledger).intact
    assert sorted(record.entry.run for record in ledger.records()) == ["one"] * each + ["two"] * each


@pytest.mark.parametrize("after", [1, 2, 7])
def test_what_was_appended_before_kill_9_is_there_and_the_chain_goes_on(tmp_path: Path, after: int) -> None:
    process = appending(tmp_path / "ledger", "killed", 10_000)
    to, of = ends(process)
    assert of.readline() == "ready\n"
    to.write("go\n")
    to.flush()
    told = [int(of.readline()) for _ in range(after)]
    process.kill()  # while it writes the next
    told += [int(line) for line in of.read().splitlines() if line]
    assert process.wait(60) == -signal.SIGKILL
    to.close()
    of.close()
    findings = verify(tmp_path / "ledger", SITE.public, COORDINATOR.public)
    assert findings.intact
    assert findings.records in (told[-1], told[-1] + 1), (
        "what was told is there, and at most what was not yet told"
    )
    ledger = Ledger(tmp_path / "ledger", SITE)
    assert ledger.append(entry(1)).number == findings.records + 1
    assert verified(ledger).intact
    assert [one.name for one in tmp_path.iterdir()] == ["ledger"], "SQLite has cleared up"


def test_a_file_is_a_whole_ledger_or_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch(mode=0o600)  # as far as a crash may have come
    assert Ledger(tmp_path / "empty", SITE).append(entry(1)).number == 1
    start, errors = threading.Barrier(8), list[Exception]()

    def make() -> None:
        start.wait()
        try:
            Ledger(tmp_path / "new", SITE)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Ledger(tmp_path / "new", SITE).append(entry(1)).number == 1


class Failing(sqlite3.Connection):
    """SQLite on a disk that fails at one statement."""

    at, error = "", sqlite3.OperationalError()

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if self.at in sql:
            raise self.error
        return super().execute(sql, *values)


@pytest.mark.parametrize("statement", ["PRAGMA", "BEGIN", "SELECT", "INSERT", "COMMIT"])
@pytest.mark.parametrize(
    ("words", "found", "remedy"),
    [
        ("database or disk is full", "no room on the disk", "make room"),
        ("disk I/O error", "OperationalError", "check the disk"),
        ("database is locked", "another program has held the file for 30 s", "end that program"),
    ],
)
def test_where_the_disk_fails_nothing_is_appended_and_the_error_says_why(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, statement: str, words: str, found: str, remedy: str
) -> None:
    ledger.append(entry(1))
    monkeypatch.setattr(Failing, "at", statement)
    monkeypatch.setattr(Failing, "error", sqlite3.OperationalError(words))
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Failing))
        with pytest.raises(LedgerFileError, match="so nothing leaves") as refused:
            ledger.append(entry(2))
    assert (refused.value.found, refused.value.where) == (found, str(ledger.path))
    assert refused.value.remedy.startswith(remedy)
    assert [record.entry for record in ledger.records()] == [entry(1)]
    assert ledger.append(entry(2)).number == 2
    assert verified(ledger).intact


def test_a_disk_that_is_really_full_is_called_full(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            super().execute("PRAGMA max_page_count=1").fetchone()  # as large as it is now, and no larger
            return super().execute(sql, *values)

    told = []

    def fill() -> None:
        while len(told) < 1000:
            told.append(ledger.append(entry(1)).number)

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Small))
        with pytest.raises(LedgerFileError) as refused:
            fill()
    assert refused.value.found == "no room on the disk"
    assert verified(ledger).intact
    assert [record.number for record in ledger.records()] == told


def test_a_ledger_that_is_gone_is_an_error_and_not_begun_anew(ledger: Ledger) -> None:
    ledger.append(entry(1))
    ledger.path.unlink()
    for use in (lambda: ledger.append(entry(2)), ledger.records, lambda: ledger.answers_on("2026-11-23")):
        with pytest.raises(LedgerFileError):
            use()
    assert not ledger.path.exists()


def test_what_cannot_be_the_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(b"not a database" * 100)
    (tmp_path / "open").touch()
    (tmp_path / "link").symlink_to(file_of(tmp_path / "good", 1).path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE records (number INTEGER)")
    for name in ("words", "other"):
        (tmp_path / name).chmod(0o600)
    (tmp_path / "open").chmod(0o644)
    for name in ("words", "other", "link", "dangling", "no folder/ledger", "."):
        with pytest.raises(LedgerFileError):
            Ledger(tmp_path / name, SITE)
    with pytest.raises(UserError, match="would not be private"):
        Ledger(tmp_path / "open", SITE)
    assert not (tmp_path / "nowhere").exists()


def test_no_secret_is_shown(ledger: Ledger) -> None:
    assert repr(ledger) == f"Ledger(path={ledger.path!r})"


def test_a_record_cannot_be_read_where_it_was_damaged(ledger: Ledger) -> None:
    ledger.append(entry(1))
    edit(ledger.path, "UPDATE records SET content = 'x'")
    with pytest.raises(ValueError):  # noqa: PT011 (pydantic's)
        _ = ledger.records()[0].entry
