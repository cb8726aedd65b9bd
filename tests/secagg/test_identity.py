"""Identities and the roster: signed off-line, canonical, never older, and no secret in a repr."""

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from parties import from_seed, identity, names_of, roster_of, site_of, terms_of

from clinimeta.common.errors import RecordError
from clinimeta.common.secagg.identity import (
    Identity,
    Roster,
    fingerprint,
    is_signed,
    sign_roster,
    verify_roster,
)
from clinimeta.common.secagg.messages import AdvertRequest
from clinimeta.common.secagg.packing import decode
from clinimeta.common.secagg.session import Session

CONSORTIUM = Identity("consortium", from_seed("consortium")(32))
ROSTER = roster_of(names_of(4))


def test_a_signed_roster_is_read_back() -> None:
    found = verify_roster(ROSTER.to_bytes(), sign_roster(ROSTER, CONSORTIUM), CONSORTIUM.public, at_least=1)
    assert found == ROSTER
    assert found.digest == ROSTER.digest
    assert found.member("köln") == ROSTER.members[2]
    assert found.member("paris") is None
    assert found.member("") is None


def test_a_roster_that_another_key_signed_is_refused() -> None:
    signature = sign_roster(ROSTER, identity("bern"))
    with pytest.raises(RecordError, match="not signed"):
        verify_roster(ROSTER.to_bytes(), signature, CONSORTIUM.public)


def test_a_roster_that_was_changed_is_refused() -> None:
    data = ROSTER.to_bytes().replace(b"bern", b"Bern")
    with pytest.raises(RecordError, match="not signed"):
        verify_roster(data, sign_roster(ROSTER, CONSORTIUM), CONSORTIUM.public)


def test_a_roster_older_than_known_is_refused() -> None:
    with pytest.raises(RecordError, match="version 2 is known"):
        verify_roster(ROSTER.to_bytes(), sign_roster(ROSTER, CONSORTIUM), CONSORTIUM.public, at_least=2)


def variant(**changes: Any) -> bytes:
    values = json.loads(ROSTER.to_bytes())
    values["sites"][0] |= changes
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        ROSTER.to_bytes() + b" ",
        json.dumps(json.loads(ROSTER.to_bytes()), sort_keys=True).encode(),
        variant(extra=1),
        variant(revoked=0),
        variant(revoked="no"),
        variant(key="00"),
        variant(key=identity("bern").public.hex().upper()),
        variant(key=identity("graz").public.hex()),
        variant(site="graz"),
        variant(site="zzz"),
        variant(site=""),
        variant(site="a\nb"),
        variant(valid_from="20260101"),
        variant(valid_from="2026-13-01"),
        variant(valid_from=20260101),
        ROSTER.to_bytes().replace(b'"version":1', b'"version":-1'),
        ROSTER.to_bytes().replace(b'"version":1', b'"version":1.5'),
    ],
)
def test_what_is_not_a_canonical_roster_is_refused_though_it_be_signed(data: bytes) -> None:
    signature = CONSORTIUM.sign(b"clinimeta roster 1\0" + data)
    with pytest.raises(RecordError):
        verify_roster(data, signature, CONSORTIUM.public)


def test_every_change_of_a_roster_changes_its_digest() -> None:
    first = ROSTER.members[0]
    others = [replace(first, revoked=True), replace(first, valid_to=date(2030, 1, 1))]
    variants = [Roster(1, (other, *ROSTER.members[1:])) for other in others] + [replace(ROSTER, version=2)]
    assert len({roster.digest for roster in (ROSTER, *variants)}) == 4


@pytest.mark.parametrize(
    ("day", "valid"),
    [("2025-12-31", False), ("2026-01-01", True), ("2027-12-31", True), ("2028-01-01", False)],
)
def test_a_key_holds_from_its_first_to_its_last_day(day: str, valid: bool) -> None:
    member = ROSTER.members[0]
    assert member.is_valid(date.fromisoformat(day)) is valid
    assert not replace(member, revoked=True).is_valid(date.fromisoformat(day))


def test_a_fingerprint_is_eight_groups_of_five_digits_and_tells_keys_apart() -> None:
    prints = {fingerprint(bytes([i]) * 32) for i in range(50)}
    assert len(prints) == 50
    for shown in prints:
        groups = shown.split(" ")
        assert [len(group) for group in groups] == [5] * 8
        assert all(group.isdigit() for group in groups)


@pytest.mark.parametrize("public", [b"", bytes(31), b"\xff" * 32])
def test_an_unusable_key_has_signed_nothing(public: bytes) -> None:
    assert not is_signed(public, b"", bytes(64))
    assert not is_signed(identity("bern").public, b"", public)


def test_no_secret_is_ever_shown() -> None:
    secret = from_seed("identity", "bern")(32)
    site = site_of("bern", ROSTER)
    site.advert(AdvertRequest(terms_of(ROSTER).to_bytes()))
    (kept,) = site.journal.secrets.values()
    session = decode(Session, kept)
    shown = f"{identity('bern')!r} {identity('bern')!s} {site!r} {session!r}"
    for hidden in (secret, session.mask_secret, session.channel_secret, site.rounding_seed):
        assert hidden.hex() not in shown
        assert repr(hidden)[2:-1] not in shown
