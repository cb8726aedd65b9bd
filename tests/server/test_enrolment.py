"""Enrolment as somebody would try to cheat it: tokens, proofs, keys, times, and bodies that are none."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from enrolling import HOUR, Hospital, Hub, body_of, hospital
from fastapi.testclient import TestClient

from clinimeta.client.keys import public_pem
from clinimeta.common.enrolment import CLOCKS_APART, prove
from clinimeta.common.errors import UserError
from clinimeta.common.receipts import Checkpoint
from clinimeta.common.secagg.identity import Identity
from clinimeta.server import database, enrolment
from clinimeta.server.daemon import make_home
from clinimeta.server.database import Database
from clinimeta.server.enrolment_api import enrolment_app
from clinimeta.server.witness import witness


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    home = make_home(
        tmp_path / "hub", "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )
    hub = Hub(Database.open(home.database), None)  # type: ignore[arg-type]  # set next
    hub.http = TestClient(enrolment_app(home, hub.deactivated.append), raise_server_exceptions=False)
    yield hub
    hub.database.engine.dispose()


# Tokens


def test_a_token_enrols_one_hospital_once(hub: Hub) -> None:
    token = hub.invite()
    assert hub.post("enrol", hospital(1).body(token)) == 200
    before = enrolment.known(hub.database)
    assert hub.post("enrol", hospital(2).body(token)) == 403
    assert hub.post("enrol", replace(hospital(1), node=hospital(2).node).body(token)) == 403
    assert enrolment.known(hub.database) == before
    assert hub.sites() == {"ulm": "waiting"}


def test_a_token_that_has_expired_enrols_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    token = hub.invite()
    later = datetime.now(UTC) + HOUR + timedelta(seconds=1)
    monkeypatch.setattr(enrolment, "now", lambda: later)
    assert hub.post("enrol", hospital().body(token)) == 403
    assert hub.sites() == {}


def test_unknown_used_and_expired_tokens_are_refused_in_the_same_words(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, old = hub.invite("ulm"), hub.invite("graz")
    hub.post("enrol", hospital(1).body(used))
    later = datetime.now(UTC) + HOUR + timedelta(seconds=1)
    monkeypatch.setattr(enrolment, "now", lambda: later)
    said = {
        hub.http.post("/v1/enrolment/enrol", json=hospital(n).body(token)).text
        for n, token in ((2, used), (3, old), (4, "x" * 43))
    }
    assert said == {'{"error":"the token is not valid"}'}


def test_of_two_tokens_for_one_name_only_one_makes_a_hospital(hub: Hub) -> None:
    first, second = hub.invite(), hub.invite()
    assert hub.post("enrol", hospital(1).body(first)) == 200
    assert hub.post("enrol", hospital(2).body(second)) == 403
    assert [site.keys.identity for site in enrolment.known(hub.database)] == [hospital(1).own.public]


def test_tokens_are_not_kept(hub: Hub, tmp_path: Path) -> None:
    token = hub.invite()
    hub.post("enrol", hospital().body(token))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"ulm" in kept
    assert token.encode() not in kept


# Proofs

STOLEN: dict[str, Callable[[Hospital, Hospital, str], dict[str, Any]]] = {
    "another's node key": lambda thief, victim, token: body_of(
        replace(thief.wanted(token), node_key=public_pem(victim.node)),
        *prove(replace(thief.wanted(token), node_key=public_pem(victim.node)), thief.node, thief.own),
    ),
    "another's identity": lambda thief, victim, token: body_of(
        replace(thief.wanted(token), identity_key=victim.own.public),
        *prove(replace(thief.wanted(token), identity_key=victim.own.public), thief.node, thief.own),
    ),
    "another's whole request under an own token": lambda _thief, victim, token: {
        **victim.body("the token that the victim had"),
        "token": token,
    },
    "other software than was signed": lambda thief, _victim, token: {
        **thief.body(token),
        "software": "clinimeta 9",
    },
    "proofs swapped": lambda thief, _victim, token: body_of(
        thief.wanted(token), *reversed(prove(thief.wanted(token), thief.node, thief.own))
    ),
    "no proofs": lambda thief, _victim, token: body_of(thief.wanted(token), b"", b""),
}


@pytest.mark.parametrize("how", STOLEN)
def test_keys_are_taken_only_from_who_holds_them(hub: Hub, how: str) -> None:
    token = hub.invite()
    assert hub.post("enrol", STOLEN[how](hospital(1), hospital(2), token)) == 422
    assert hub.sites() == {}
    assert hub.post("enrol", hospital(1).body(token)) == 200, "a bad request does not use the token up"


@pytest.mark.parametrize("which", ["node_key", "identity_key"])
def test_a_hospitals_keys_cannot_come_under_a_second_name(hub: Hub, which: str) -> None:
    first, token = hospital(1), hub.invite("ulm")
    hub.post("enrol", first.body(token))
    enrolment.revoke(hub.database, "ulm", "operator", "left")
    other = hospital(2)
    again = Hospital(first.node, other.own) if which == "node_key" else Hospital(other.node, first.own)
    assert hub.post("enrol", again.body(hub.invite("graz"))) == 403
    assert hub.sites() == {"ulm": "revoked"}


def pem(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: pem(ec.generate_private_key(ec.SECP256R1())), id="another curve"),
        pytest.param(lambda: pem(rsa.generate_private_key(65537, 2048)), id="RSA"),
        pytest.param(lambda: b"", id="nothing"),
        pytest.param(lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", id="no key"),
        pytest.param(lambda: bytes(range(256)), id="bytes"),
    ],
)
def test_a_node_key_is_one_of_flowers_kind(hub: Hub, key: Callable[[], bytes]) -> None:
    one, token = hospital(), hub.invite()
    wanted = replace(one.wanted(token), node_key=key())
    assert hub.post("enrol", body_of(wanted, *prove(wanted, one.node, one.own))) == 422
    assert hub.sites() == {}


ODD: dict[str, Callable[[dict[str, Any], str, str], Any]] = {
    "nothing": lambda _body, _text, _code: None,
    "a list": lambda _body, _text, _code: [],
    "no fields": lambda _body, _text, _code: {},
    "a field too many": lambda body, _text, _code: {**body, "state": "approved"},
    "numbers": lambda body, _text, _code: dict.fromkeys(body, 1),
    "not hexadecimal": lambda body, _text, code: {**body, code: "zz"},
    "too long": lambda body, _text, code: {**body, code: "0" * 5000},
    "half a letter": lambda body, text, _code: {**body, text: "\ud800"},
    "a null": lambda body, text, _code: {**body, text: "\0"},
    "a short key": lambda body, _text, _code: {**body, "identity_key": "00" * 31},
}
"""What is made of a request, of which `text` and `code` (hexadecimal) are two fields."""


@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("what", ["enrol", "status", "started"])
def test_a_malformed_request_is_refused_and_changes_nothing(hub: Hub, what: str, how: str) -> None:
    one = hospital()
    if what == "enrol":
        body = ODD[how](one.body(hub.invite()), "token", "node_key")
    else:
        body = ODD[how](one.says(what, datetime.now(UTC)), "at", "proof")
    assert 400 <= hub.post(what, body) < 500
    assert (hub.sites(), hub.deactivated) == ({}, [])


def test_what_an_operator_will_read_holds_no_control_characters(hub: Hub) -> None:
    one = hospital()
    wanted = replace(one.wanted(hub.invite()), software="clini\x1b[2Jmeta\n\r\x00\u202e 1")
    assert hub.post("enrol", body_of(wanted, *prove(wanted, one.node, one.own))) == 200
    assert [site.software for site in enrolment.known(hub.database)] == ["clini[2Jmeta 1"]


# Rotation and revocation


def test_after_a_rotation_the_old_keys_are_nobodys(hub: Hub) -> None:
    old, new = hospital(1), hospital(2)
    hub.post("enrol", old.body(hub.invite(automatic=True)))
    enrolment.set_node(hub.database, "ulm", 7)
    assert hub.post("enrol", new.body(hub.invite(automatic=True, purpose="rotate"))) == 200
    (site,) = enrolment.known(hub.database)
    assert (site.state, site.node_id, site.keys.identity) == ("approved", None, new.own.public)
    assert site.keys.node == public_pem(new.node)
    assert hub.post("status", old.says("status", datetime.now(UTC))) == 403
    assert hub.post("status", new.says("status", datetime.now(UTC))) == 200


def test_new_keys_wait_for_a_person_where_the_token_does_not_say_otherwise(hub: Hub) -> None:
    hub.post("enrol", hospital(1).body(hub.invite(automatic=True)))
    assert hub.post("enrol", hospital(2).body(hub.invite(purpose="rotate"))) == 200
    assert hub.sites() == {"ulm": "waiting"}


def test_a_revoked_hospital_does_not_come_back_with_a_token_from_before(hub: Hub) -> None:
    hub.post("enrol", hospital(1).body(hub.invite(automatic=True)))
    token = hub.invite(automatic=True, purpose="rotate")
    enrolment.revoke(hub.database, "ulm", "operator", "left")
    assert hub.post("enrol", hospital(2).body(token)) == 403
    assert hub.sites() == {"ulm": "revoked"}
    with pytest.raises(UserError):
        hub.invite(automatic=True, purpose="rotate")


@pytest.mark.parametrize("purpose", ["enrol", "rotate"])
def test_an_answer_that_got_lost_is_given_again_to_the_same_keys(hub: Hub, purpose: str) -> None:
    if purpose == "rotate":
        enrolled(hub)
    token, one = hub.invite(purpose=purpose), hospital(5)
    first = hub.http.post("/v1/enrolment/enrol", json=one.body(token))
    events = hub.database.rows(sa.select(database.events))
    again = hub.http.post("/v1/enrolment/enrol", json=one.body(token))
    assert (again.status_code, again.json()) == (200, first.json())
    assert hub.database.rows(sa.select(database.events)) == events
    enrolment.revoke(hub.database, "ulm", "operator", "left")
    assert hub.post("enrol", one.body(token)) == 403


def test_a_revoked_hospital_comes_back_with_new_keys_only(hub: Hub) -> None:
    old = enrolled(hub)
    enrolment.revoke(hub.database, "ulm", "operator", "stolen")
    with pytest.raises(UserError, match="no keys to replace") as refused:
        hub.invite(purpose="rotate")
    assert "coordinator invite" in refused.value.remedy
    token = hub.invite()
    assert hub.post("enrol", old.body(token)) == 403
    assert hub.post("enrol", hospital(2).body(token)) == 200
    assert hub.sites() == {"ulm": "waiting"}
    assert hub.post("status", old.says("status", datetime.now(UTC))) == 403


def test_keys_that_signed_a_ledger_once_come_back_under_no_name(hub: Hub) -> None:
    old, own = enrolled(hub), Identity("hub", bytes(32))
    witness(hub.database, own, "ulm", old.own.public, Checkpoint(1, bytes(32), bytes(64)))
    assert hub.post("enrol", hospital(2).body(hub.invite(purpose="rotate", automatic=True))) == 200
    assert hub.post("enrol", replace(hospital(3), own=old.own).body(hub.invite("graz"))) == 403
    assert hub.post("enrol", replace(hospital(3), own=old.own).body(hub.invite(purpose="rotate"))) == 403


def test_a_waiting_or_approved_name_is_not_invited_again(hub: Hub) -> None:
    hub.post("enrol", hospital().body(hub.invite()))
    for _ in range(2):
        with pytest.raises(UserError, match="enrolled already"):
            hub.invite()
        if hub.sites()["ulm"] == "waiting":
            enrolment.approve(hub.database, "ulm", "operator")


# What a known hospital says


def enrolled(hub: Hub) -> Hospital:
    one = hospital()
    assert hub.post("enrol", one.body(hub.invite(automatic=True))) == 200
    enrolment.set_node(hub.database, "ulm", 7)
    return one


def test_only_the_hospital_itself_hears_how_it_stands(hub: Hub) -> None:
    one, now = enrolled(hub), datetime.now(UTC)
    assert hub.post("status", one.says("status", now)) == 200
    assert hub.post("status", hospital(2).says("status", now)) == 403
    other = hospital(2).says("status", now)
    assert hub.post("status", {**other, "identity_key": one.own.public.hex()}) == 403
    assert hub.post("status", one.says("started", now)) == 403, "said for another purpose"
    assert hub.post("status", {**one.says("status", now), "at": (now + timedelta(1)).isoformat()}) == 403


@pytest.mark.parametrize("apart", [CLOCKS_APART + timedelta(seconds=5), -CLOCKS_APART - timedelta(seconds=5)])
def test_what_was_said_at_another_time_does_not_count(hub: Hub, apart: timedelta) -> None:
    one = enrolled(hub)
    for what in ("status", "started"):
        assert hub.post(what, one.says(what, datetime.now(UTC) + apart)) == 403
    assert hub.deactivated == []


@pytest.mark.parametrize("at", ["", "now", "2026-11-23T12:00:00", "9999-12-31T23:59:59+00:00"])
def test_a_time_that_is_none_does_not_count(hub: Hub, at: str) -> None:
    one = enrolled(hub)
    assert hub.post("started", one.says("started", at)) == 403


def test_that_a_hospital_started_is_heard_once(hub: Hub) -> None:
    """Else whoever heard it could keep the hospital from the federation."""
    one, now = enrolled(hub), datetime.now(UTC)
    said = one.says("started", now)
    assert hub.post("started", said) == 200
    assert hub.post("started", said) == 403
    assert hub.post("started", one.says("started", now - timedelta(seconds=1))) == 403
    assert hub.deactivated == [7]
    assert hub.post("started", one.says("started", now + timedelta(seconds=1))) == 200
    assert hub.deactivated == [7, 7]


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/v1/enrolment/", "/v1/enrolment/sites"])
def test_there_is_nothing_else_to_ask(hub: Hub, path: str) -> None:
    assert hub.http.get(path).status_code == 404


def test_the_certificate_that_anybody_gets_is_no_key(hub: Hub) -> None:
    text = hub.http.get("/v1/enrolment/ca").text
    assert text.startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE" not in text
