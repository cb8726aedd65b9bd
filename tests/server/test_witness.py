"""The coordinator's receipts: one for each checkpoint, in any order, and a rewritten ledger is noticed."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import ATTACKER, COORDINATOR, SITE, chain, edit, entry, file_of

from clinimeta.client.ledger import Record
from clinimeta.client.ledger_check import examine, read_receipts, verify
from clinimeta.common.receipts import Checkpoint, checkpoint, is_receipt
from clinimeta.common.secagg.identity import Identity, fingerprint
from clinimeta.server import enrolment
from clinimeta.server.daemon import make_home
from clinimeta.server.database import Database, events
from clinimeta.server.enrolment import Keys
from clinimeta.server.witness import all_of, newest, witness
from clinimeta.simulations.cli import app, run

LENGTH = 8


def numbered(number: int, word: bytes = b"", by: Identity = SITE) -> Checkpoint:
    return checkpoint(number, bytes([number]) * 31 + (word or b"a"), by)


def of(record: Record) -> Checkpoint:
    return Checkpoint(record.number, record.hash, record.signature)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database.open(tmp_path / "hub.sqlite")


def hear(database: Database, made: Checkpoint, site: str = "ulm", key: Identity = SITE) -> bool:
    return witness(database, COORDINATOR, site, key.public, made)


def receipts_in(database: Database, site: str = "ulm", key: Identity = SITE) -> dict[int, Any]:
    return {made.number: (made.hash, by) for made, by in all_of(database, site, key.public)}


def rewritten(database: Database) -> list[tuple[str, str]]:
    rows = database.rows(sa.select(events).where(events.c.what == "ledger rewritten"))
    return [(row["about"], row["detail"]) for row in rows]


def test_each_checkpoint_gets_one_receipt_which_is_the_coordinators(database: Database) -> None:
    assert newest(database, "ulm", SITE.public) is None
    for number in (1, 2, 2, 1, 3):
        assert hear(database, numbered(number))
    kept = all_of(database, "ulm", SITE.public)
    assert [made for made, _ in kept] == [numbered(number) for number in (1, 2, 3)]
    assert all(is_receipt(by, made, SITE.public, COORDINATOR.public) for made, by in kept)
    assert newest(database, "ulm", SITE.public) == kept[-1]
    assert rewritten(database) == []


@given(st.lists(st.integers(1, LENGTH), min_size=1, max_size=12))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_may_arrive_in_any_order_and_twice(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    database = Database.open(tmp_path_factory.mktemp("d") / "hub.sqlite")
    records = chain(LENGTH)
    assert all(hear(database, of(records[number - 1])) for number in order)
    receipts = receipts_in(database)
    assert sorted(receipts) == sorted(set(order))
    assert rewritten(database) == []
    findings = examine(records, receipts, SITE.public, COORDINATOR.public)
    assert (findings.intact, findings.complete, findings.witnessed) == (True, True, max(order))


def test_a_rewritten_ledger_is_noticed_named_and_gets_no_receipt(database: Database) -> None:
    records, anew = chain(LENGTH), chain(LENGTH, study="another")
    assert all(hear(database, of(record)) for record in records[:5])
    before = receipts_in(database)
    assert not hear(database, of(anew[4]))
    assert not hear(database, of(anew[2]))
    assert receipts_in(database) == before
    assert rewritten(database) == [("ulm", "record 5"), ("ulm", "record 3")]
    assert hear(database, of(anew[5])), "a number that is new contradicts nothing by itself"
    findings = examine(anew, receipts_in(database), SITE.public, COORDINATOR.public)
    assert findings.broken == 1, "but its ledger does not verify against the receipts"


def test_a_ledger_that_was_lost_and_begun_anew_is_noticed_at_its_first_record(
    database: Database, tmp_path: Path
) -> None:
    first = file_of(tmp_path / "lost", 3)
    assert all(hear(database, of(record)) for record in first.records())
    again = file_of(tmp_path / "anew", 0)
    assert not hear(database, again.append(entry(9)))
    assert verify(again.path, SITE.public, COORDINATOR.public, receipts_in(database)).missing == (2, 3)


def test_hospitals_and_keys_have_a_ledger_each(database: Database) -> None:
    assert hear(database, numbered(1))
    assert hear(database, numbered(1, b"b"), site="graz")
    assert hear(database, numbered(1, b"c", ATTACKER), key=ATTACKER), "new keys begin a new ledger"
    assert not hear(database, numbered(1, b"d", ATTACKER), key=ATTACKER)
    kept = [
        newest(database, site, key.public) for site, key in (("ulm", SITE), ("graz", SITE), ("ulm", ATTACKER))
    ]
    assert [one[0].hash[-1:] for one in kept if one] == [b"a", b"b", b"c"]
    assert newest(database, "graz", ATTACKER.public) is None


def test_one_of_two_contradicting_answers_at_once_is_believed(database: Database) -> None:
    start, said = threading.Barrier(6), list[bool]()

    def say(word: bytes) -> None:
        start.wait()
        said.append(hear(database, numbered(1, word)))

    threads = [threading.Thread(target=say, args=(bytes([number]),)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [False] * 5 + [True]
    assert len(rewritten(database)) == 5


def test_the_operators_list_of_receipts_finds_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(
        tmp_path / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )
    database = Database.open(home.database)
    token = enrolment.invite(database, "ulm", timedelta(hours=1), "Ada", automatic=True)
    enrolment.enrol(database, token, Keys(b"node", SITE.public), "clinimeta 0")
    ledger = file_of(tmp_path / "ledger", 4)
    assert all(hear(database, of(record)) for record in ledger.records())

    def typed(name: str, *more: str) -> tuple[int, str, str]:
        words = ["coordinator", "receipts", name, "--home", str(home.path), *more]
        capsys.readouterr()
        code = run(lambda: app(args=words, standalone_mode=False))
        return code, *capsys.readouterr()

    code, out, _ = typed("ulm")
    assert code == 0
    (tmp_path / "receipts.txt").write_text(out)
    edit(ledger.path, "DELETE FROM records WHERE number = 4")
    more = read_receipts(tmp_path / "receipts.txt")
    assert verify(ledger.path, SITE.public, COORDINATOR.public, more).missing == (4,)
    rotated = enrolment.invite(database, "ulm", timedelta(hours=1), "Ada", automatic=True, purpose="rotate")
    enrolment.enrol(database, rotated, Keys(b"new node", bytes(32)), "clinimeta 0")
    assert typed("ulm")[1] == ""
    assert typed("ulm", "--former", fingerprint(SITE.public).replace(" ", "-"))[1] == out
    _, nothing, error = typed("ulm", "--former", fingerprint(bytes(32)))
    assert nothing == ""
    assert fingerprint(SITE.public) in error
    code, out, error = typed("ulmm")
    assert (code != 0, out) == (True, "")
    assert "no hospital of this name is enrolled" in error
