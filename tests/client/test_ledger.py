"""The outbound ledger: whatever is done to a record afterwards is seen, and where."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.certificate import Subject, certificate
from clinimeta.client.ledger import Cost, Entry, Ledger, Record, Sent, hash_of
from clinimeta.client.ledger_check import Findings, examine, read, read_receipts, text, verify
from clinimeta.common.errors import LedgerFileError
from clinimeta.common.receipts import checkpoint, genesis, receipt
from clinimeta.common.secagg.identity import Identity

SITE, COORDINATOR = Identity("ulm", bytes([1]) * 32), Identity("hub", bytes([2]) * 32)
LENGTH = 6


def entry(number: int, **changes: object) -> Entry:
    tensor = Sent("gradient.weight", "float32", (13, 1), 0.5, 52, "ab" * 32)
    made = Entry(
        at=f"2026-11-23T10:00:{number:02d}+00:00",
        kind="MetaGradient",
        to="hub (12345)",
        outcome="sent",
        run="run-1",
        round=number,
        study="sepsis",
        arm="maml",
        plan="cd" * 32,
        policy="ef" * 32,
        tensors=(tensor,),
        numbers={"weight": 4.0},
        cost=Cost(1.5, 1e-6, 3.0),
        bytes=1000 + number,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def chain(length: int = LENGTH) -> list[Record]:
    records, previous = [], genesis(SITE.public)
    for number in range(1, length + 1):
        content = entry(number).canonical()
        made = checkpoint(number, hash_of(number, previous, content), SITE)
        records.append(Record(number, previous, content, made.hash, made.signature))
        previous = made.hash
    return records


def receipts_for(records: list[Record], *numbers: int) -> dict[int, tuple[bytes, bytes]]:
    found = {}
    for record in records:
        if record.number in numbers:
            made = checkpoint(record.number, record.hash, SITE)
            found[record.number] = (record.hash, receipt(made, SITE.public, COORDINATOR))
    return found


def found(records: list[Record], receipts: dict[int, tuple[bytes, bytes]] | None = None) -> Findings:
    return examine(records, receipts or {}, SITE.public, COORDINATOR.public)


def test_what_was_not_touched_is_intact_and_complete() -> None:
    records = chain()
    findings = found(records, receipts_for(records, 2, 4))
    assert (findings.intact, findings.complete, findings.witnessed) == (True, True, 4)
    assert "the last 2 are this hospital's word alone" in text(findings)


EDITS = {
    "number": lambda record: replace(record, number=record.number + 10),
    "previous": lambda record: replace(record, previous=bytes(32)),
    "content": lambda record: replace(record, content=record.content.replace("sepsis", "asthma")),
    "bytes in the content": lambda record: replace(record, content=record.content.replace("100", "900", 1)),
    "hash": lambda record: replace(record, hash=bytes(32)),
    "signature": lambda record: replace(record, signature=bytes(64)),
}


@given(st.sampled_from(sorted(EDITS)), st.integers(0, LENGTH - 1))
def test_an_edited_record_is_named(what: str, place: int) -> None:
    records = chain()
    records[place] = EDITS[what](records[place])
    assert found(records).broken == place + 1


@given(st.integers(0, LENGTH - 1))
def test_an_attacker_without_the_key_cannot_make_the_chain_anew(place: int) -> None:
    records, attacker = chain(), Identity("ulm", bytes([9]) * 32)
    previous = records[place].previous
    for at in range(place, LENGTH):
        content = entry(at + 1, bytes=7).canonical()
        made = checkpoint(at + 1, hash_of(at + 1, previous, content), attacker)
        records[at] = Record(at + 1, previous, content, made.hash, made.signature)
        previous = made.hash
    assert found(records).broken == place + 1


@given(st.integers(1, LENGTH - 1))
def test_with_the_hospitals_key_only_what_was_witnessed_is_safe(witnessed: int) -> None:
    before = chain()
    records, previous = [], genesis(SITE.public)
    for number in range(1, LENGTH + 1):
        content = entry(number, study="another").canonical()
        made = checkpoint(number, hash_of(number, previous, content), SITE)
        records.append(Record(number, previous, content, made.hash, made.signature))
        previous = made.hash
    assert found(records).intact
    assert found(records, receipts_for(before, witnessed)).broken == witnessed


@given(st.permutations(range(LENGTH)))
def test_reordered_records_are_named_at_the_first_that_moved(order: list[int]) -> None:
    records = [chain()[at] for at in order]
    moved = next((place for place, at in enumerate(order) if place != at), None)
    assert found(records).broken == (None if moved is None else moved + 1)


@given(st.integers(0, LENGTH - 1))
def test_a_deleted_record_is_named(place: int) -> None:
    records = chain()
    receipts = receipts_for(records, *range(1, LENGTH + 1))
    del records[place]
    findings = found(records, receipts)
    assert findings.broken == (None if place == LENGTH - 1 else place + 1)
    assert findings.missing == (place + 1,)


@given(st.integers(0, LENGTH - 1), st.integers(1, LENGTH))
def test_a_truncated_ledger_is_incomplete_where_more_was_witnessed(left: int, witnessed: int) -> None:
    records = chain()
    findings = found(records[:left], receipts_for(records, witnessed))
    assert findings.intact
    assert findings.complete == (left >= witnessed)


def test_a_foreign_receipt_witnesses_nothing() -> None:
    records = chain()
    made = checkpoint(3, records[2].hash, SITE)
    foreign = {3: (records[2].hash, receipt(made, SITE.public, Identity("other", bytes([3]) * 32)))}
    findings = found(records, foreign)
    assert (findings.witnessed, findings.unread_receipts, findings.complete) == (0, 1, False)


def test_a_content_in_another_spelling_is_named() -> None:
    records, previous = chain(1), genesis(SITE.public)
    content = records[0].content.replace(",", ", ")
    made = checkpoint(1, hash_of(1, previous, content), SITE)
    assert found([Record(1, previous, content, made.hash, made.signature)]).broken == 1


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", SITE)


def test_the_file_holds_what_was_appended_and_is_verified_offline(ledger: Ledger) -> None:
    made = [ledger.append(entry(number)) for number in range(1, 5)]
    assert ledger.receive(made[2], receipt(made[2], SITE.public, COORDINATOR), COORDINATOR.public)
    before = ledger.path.read_bytes()
    findings = verify(ledger.path, SITE.public, COORDINATOR.public)
    assert (findings.records, findings.intact, findings.witnessed) == (4, True, 3)
    assert [record.entry for record in ledger.records()] == [entry(number) for number in range(1, 5)]
    assert [record.number for record in ledger.records(last=2)] == [3, 4]
    assert ledger.path.read_bytes() == before
    assert ledger.path.stat().st_mode & 0o077 == 0


def test_receipts_that_do_not_fit_are_not_kept(ledger: Ledger) -> None:
    made = ledger.append(entry(1))
    elsewhere = checkpoint(1, bytes(32), SITE)
    assert not ledger.receive(made, receipt(made, SITE.public, SITE), COORDINATOR.public)
    assert not ledger.receive(elsewhere, receipt(elsewhere, SITE.public, COORDINATOR), COORDINATOR.public)
    assert verify(ledger.path, SITE.public, COORDINATOR.public).witnessed == 0


def test_receipts_from_outside_find_a_truncated_file(ledger: Ledger, tmp_path: Path) -> None:
    made = [ledger.append(entry(number)) for number in range(1, 4)]
    lines = [
        f"{one.number} {one.hash.hex()} {receipt(one, SITE.public, COORDINATOR).hex()}\n" for one in made
    ]
    (tmp_path / "receipts.txt").write_text("".join(lines))
    with sqlite3.connect(ledger.path) as database:
        database.execute("DELETE FROM records WHERE number = 3")
    assert verify(ledger.path, SITE.public, COORDINATOR.public).complete
    more = read_receipts(tmp_path / "receipts.txt")
    assert verify(ledger.path, SITE.public, COORDINATOR.public, more).missing == (3,)


def test_nothing_is_appended_where_the_disk_fails(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append(entry(1))

    def full(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", full)
        with pytest.raises(LedgerFileError) as refused:
            ledger.append(entry(2))
    assert refused.value.found == "no room on the disk"
    assert len(ledger.records()) == 1


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a database" * 100)
    (tmp_path / "x").chmod(0o600)
    for use in (
        lambda: read(tmp_path / "x"),
        lambda: Ledger(tmp_path / "x", SITE),
        lambda: read(tmp_path / "y"),
    ):
        with pytest.raises(LedgerFileError):
            use()
    with pytest.raises(LedgerFileError, match="no receipts"):
        read_receipts(tmp_path / "x")


def test_answers_of_a_day_are_those_made_from_the_table(ledger: Ledger) -> None:
    ledger.append(entry(1))
    ledger.append(entry(2, kind="Introduction"))
    ledger.append(entry(3, kind="Refusal", outcome="not_approved"))
    ledger.append(entry(4, kind="masked"))
    ledger.append(entry(5, at="2026-11-24T00:00:00+00:00"))
    assert (ledger.answers_on("2026-11-23"), ledger.answers_on("2026-11-25")) == (2, 0)


def test_the_certificate_says_first_whether_it_may_be_relied_on() -> None:
    subject, now = Subject("<b>Ulm</b>", "1 2", "hub", "ef" * 32), datetime(2026, 11, 24, tzinfo=UTC)
    records = chain()
    good = certificate(subject, [one.entry for one in records], found(records, receipts_for(records, 6)), now)
    assert "Unchanged: all 6 records" in good
    assert "counter-signed by the coordinator" in good
    assert "epsilon 1.5" in good
    assert "<b>Ulm" not in good
    assert "<script" not in good
    assert "http" not in good.replace("http-equiv", "")
    records[3] = EDITS["content"](records[3])
    broken = certificate(subject, [one.entry for one in records], found(records), now)
    assert broken.index("Changed:") < broken.index("What these messages are")
    assert "Nothing has left" in certificate(subject, [], found([]), now)
