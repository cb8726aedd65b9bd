"""Whatever is done to a ledger's records afterwards is seen, and where; what nobody can see is said so."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import (
    ATTACKER,
    COORDINATOR,
    LENGTH,
    OTHER_HUB,
    SITE,
    Receipts,
    chain,
    chained,
    entry,
    receipts_for,
)

from clinimeta.client.ledger import Record, hash_of
from clinimeta.client.ledger_check import Findings, examine, text
from clinimeta.common.receipts import checkpoint

PLACES = st.integers(0, LENGTH - 1)
ALL = range(1, LENGTH + 1)


def found(records: list[Record], receipts: Receipts | None = None, more: Receipts | None = None) -> Findings:
    return examine(records, receipts or {}, SITE.public, COORDINATOR.public, more)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_what_was_not_touched_is_intact_and_complete() -> None:
    records = chain()
    findings = found(records, receipts_for(records, 2, 4))
    assert (findings.intact, findings.complete, findings.witnessed, findings.why) == (True, True, 4, "")
    assert "the last 2 are this hospital's word alone" in text(findings)
    assert "integrity: all 6 records" in text(findings)


EDITS: dict[str, Callable[[Record, int], Record]] = {
    "previous": lambda record, at: replace(record, previous=flipped(record.previous, at % 32)),
    "content": lambda record, at: replace(
        record, content=record.content[: at + 2] + "~" + record.content[at + 3 :]
    ),
    "hash": lambda record, at: replace(record, hash=flipped(record.hash, at % 32)),
    "signature": lambda record, at: replace(record, signature=flipped(record.signature, at % 64)),
    "empty content": lambda record, _: replace(record, content=""),
    "longer content": lambda record, _: replace(record, content=record.content + " "),
}


@given(what=st.sampled_from(sorted(EDITS)), place=PLACES, at=st.integers(0, 500))
def test_an_edited_record_is_named_and_is_still_there(what: str, place: int, at: int) -> None:
    records = chain()
    receipts = receipts_for(records, *ALL)
    records[place] = EDITS[what](records[place], at)
    findings = found(records, receipts)
    assert (findings.broken, findings.missing, findings.complete) == (place + 1, (), True)
    assert findings.witnessed == place, "what comes after a broken record is vouched for by nobody"
    assert f"BROKEN at record {place + 1}" in text(findings)


@given(st.permutations(range(LENGTH)))
def test_reordered_records_are_named_at_the_first_that_moved(order: list[int]) -> None:
    records = [chain()[at] for at in order]
    moved = next((place for place, at in enumerate(order) if place != at), None)
    assert found(records).broken == (None if moved is None else moved + 1)


@given(order=st.permutations(range(LENGTH)))
def test_contents_that_changed_places_are_named_at_the_first(order: list[int]) -> None:
    records = chain()
    renumbered = [replace(records[at], number=place + 1) for place, at in enumerate(order)]
    moved = next((place for place, at in enumerate(order) if place != at), None)
    findings = found(renumbered, receipts_for(records, *ALL))
    assert (findings.broken, findings.missing) == (None if moved is None else moved + 1, ())


@given(gone=st.sets(PLACES, min_size=1), witnessed=st.booleans())
def test_deleted_records_are_named(gone: set[int], witnessed: bool) -> None:
    records = chain()
    left = [record for place, record in enumerate(records) if place not in gone]
    findings = found(left, receipts_for(records, *ALL) if witnessed else {})
    first_gap = min(gone) + 1
    last_left = left[-1].number if left else 0
    assert findings.broken == (first_gap if first_gap < last_left else None)
    known = [place + 1 for place in sorted(gone) if witnessed or place + 1 < last_left]
    assert findings.missing == tuple(known)
    assert findings.complete == (not known)


@given(left=st.integers(0, LENGTH - 1), witnessed=st.integers(1, LENGTH))
def test_a_truncated_ledger_is_incomplete_where_more_was_witnessed(left: int, witnessed: int) -> None:
    records = chain()
    findings = found(records[:left], receipts_for(records, witnessed))
    assert findings.intact
    assert findings.complete == (left >= witnessed)
    assert ("INCOMPLETE" in text(findings)) == (left < witnessed)


@given(place=st.integers(0, LENGTH), by_hospital=st.booleans())
def test_an_inserted_record_is_named(place: int, by_hospital: bool) -> None:
    records = chain()
    by = SITE if by_hospital else ATTACKER
    [made] = chained([entry(1, study="another").canonical()], by, records[:place])[place:]
    moved = [replace(record, number=record.number + 1) for record in records[place:]]
    findings = found([*records[:place], made, *moved], receipts_for(records, *ALL))
    if not by_hospital:
        assert findings.broken == place + 1
    else:  # with the key it can be written at the end, after what was counter-signed
        assert findings.broken == (None if place == LENGTH else place + 1)
        assert findings.witnessed == place


@given(PLACES)
def test_an_attacker_without_the_key_cannot_make_the_chain_anew(place: int) -> None:
    contents = [entry(number, bytes=7).canonical() for number in range(place + 1, LENGTH + 1)]
    records = chained(contents, ATTACKER, chain()[:place])
    findings = found(records)
    assert findings.broken == place + 1
    if place:
        assert findings.why == "it is not signed by this hospital's key"
    signed_before = [replace(new, signature=old.signature) for new, old in zip(records, chain(), strict=True)]
    assert found(signed_before).broken == place + 1


@given(st.integers(1, LENGTH - 1))
def test_with_the_hospitals_key_only_what_was_witnessed_is_safe(witnessed: int) -> None:
    before, anew = chain(), chain(study="another")
    assert found(anew).intact
    findings = found(anew, receipts_for(before, witnessed))
    assert (findings.broken, findings.why) == (
        1 if witnessed == 1 else witnessed,
        "it is not the record that the coordinator counter-signed",
    )


@given(st.integers(1, LENGTH - 1))
def test_two_chains_that_the_hospital_signed_cannot_be_joined(place: int) -> None:
    findings = found([*chain()[:place], *chain(study="another")[place:]])
    assert (findings.broken, findings.why) == (place + 1, "it does not follow the record before it")


def test_a_ledger_of_another_hospital_is_none_of_this_one() -> None:
    theirs = chained([entry(1).canonical()], ATTACKER)
    assert found(theirs).broken == 1
    assert examine(theirs, {}, ATTACKER.public, COORDINATOR.public).intact


def test_a_foreign_receipt_witnesses_nothing() -> None:
    records = chain()
    foreign = receipts_for(records, 3, by=OTHER_HUB)
    findings = found(records, foreign)
    assert (findings.witnessed, findings.unread_receipts, findings.complete) == (0, 1, False)
    assert "completeness: UNKNOWN: 1 receipts" in text(findings)
    both = found(records[:4], receipts_for(records, 6), foreign)
    assert (both.missing, both.unread_receipts) == ((6,), 1)
    assert "INCOMPLETE" in text(both)
    assert "UNKNOWN" in text(both)


def test_a_foreign_receipt_does_not_displace_the_coordinators() -> None:
    records = chain()
    good, foreign = receipts_for(records, 3), receipts_for(records, 3, by=OTHER_HUB)
    for receipts, more in ((good, foreign), (foreign, good)):
        assert found(records[:2], receipts, more).missing == (3,)


@pytest.mark.parametrize("number", [0, -1, 1 << 63, 1 << 64])
def test_a_receipt_with_a_number_that_none_has_is_not_the_coordinators(number: int) -> None:
    records = chain()
    odd = {number: receipts_for(records, 1)[1]}
    assert found(records, odd).unread_receipts == 1


ODD = {
    "other spelling": entry(1).canonical().replace(",", ", "),
    "no JSON": "x",
    "a list": "[]",
    "a text": '"x"',
    "deep": "[" * 5000 + "]" * 5000,
    "a key twice": entry(1).canonical()[:-1] + ',"at":""}',
    "a key more": entry(1).canonical()[:-1] + ',"z":1}',
    "a key less": entry(1).canonical().replace('"kind":"MetaGradient",', "", 1),
    "not a number": entry(1).canonical().replace("4.0", "NaN"),
    "too large a number": entry(1).canonical().replace("4.0", "1e999"),
    "bytes in words": entry(1).canonical().replace("1001", '"1001"'),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_content_in_another_form_is_named_even_where_the_hospital_signed_it(content: str) -> None:
    assert content != entry(1).canonical()
    findings = found(chained([content]))
    assert (findings.broken, findings.why) == (1, "its content cannot be read, or is not in its one form")


def test_a_gap_of_any_size_is_told_in_little_room() -> None:
    records, number = chain(), 1 << 60
    made = checkpoint(number, hash_of(number, records[-1].hash, records[-1].content), SITE)
    far = replace(records[-1], number=number, previous=records[-1].hash, hash=made.hash)
    findings = found([*records, replace(far, signature=made.signature)])
    assert (findings.broken, findings.missing[0], len(findings.missing)) == (LENGTH + 1, LENGTH + 1, 1000)
    assert len(text(findings)) < 500
