"""Enrolling, as seen by whoever reads along: what leaves the hospital, and to whom it is sent at all."""

import base64
import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from clinimeta.client import enrol as module
from clinimeta.client.config import Home
from clinimeta.client.enrol import Enrolment, enrol, standing, started
from clinimeta.client.folder import make_home
from clinimeta.client.keys import node_key
from clinimeta.common.errors import UserError
from clinimeta.common.private_files import read_secret

CA = b"-----BEGIN CERTIFICATE-----\nof the coordinator\n-----END CERTIFICATE-----\n"
Answer = Callable[[httpx.Request], httpx.Response]


def digest(certificate: bytes) -> str:
    return hashlib.sha256(certificate).hexdigest()[:32]


def honest(request: httpx.Request) -> httpx.Response:
    answers: dict[str, Any] = {
        "/v1/enrolment/enrol": {"site": "ulm", "state": "waiting", "name": "hub", "identity": "00" * 32},
        "/v1/enrolment/status": {"site": "ulm", "state": "revoked", "time": "2026-11-23T12:00:00+00:00"},
        "/v1/enrolment/started": {},
    }
    if request.url.path == "/v1/enrolment/ca":
        return httpx.Response(200, content=CA)
    return httpx.Response(200, json=answers[request.url.path])


@dataclass(slots=True)
class Wire:
    """Between hospital and coordinator: keeps every request, and whether a certificate was asked for."""

    answer: Answer = honest
    sent: list[tuple[httpx.Request, bool]] = field(default_factory=list)

    def client(self, real: type[httpx.Client], *, verify: Any, timeout: float) -> httpx.Client:
        def handle(request: httpx.Request) -> httpx.Response:
            request.read()
            self.sent.append((request, verify is not False))
            return self.answer(request)

        assert timeout < 60
        return real(transport=httpx.MockTransport(handle))

    @property
    def bytes(self) -> bytes:
        """All that left the hospital."""
        return b"\n".join(
            str(request.url).encode() + repr(request.headers.raw).encode() + request.content
            for request, _ in self.sent
        )


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    def tls(cafile: str) -> ssl.SSLContext:
        assert Path(cafile).read_bytes() == CA
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    wire, real = Wire(), httpx.Client
    monkeypatch.setattr(module.httpx, "Client", lambda **options: wire.client(real, **options))
    monkeypatch.setattr(module.ssl, "create_default_context", tls)
    return wire


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "patients.csv").write_text("age,death\n4711,1\n")
    return make_home(tmp_path / "ulm", address="hub.test:9443", data="../patients.csv", port=1, health_port=2)


def test_private_keys_and_patients_stay_here(home: Home, wire: Wire) -> None:
    enrol(home, f"a-secret-token.{digest(CA)}")
    standing(home)
    started(home)
    key = node_key(home)
    number = key.private_numbers().private_value.to_bytes(48, "big")
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    secrets = [number, der, read_secret(home.node_key), read_secret(home.identity_key)]
    secrets += [read_secret(home.superexec_secret), b"4711"]
    spelled = [
        form
        for secret in secrets
        for form in (
            secret,
            secret.hex().encode(),
            base64.b64encode(secret),
            base64.urlsafe_b64encode(secret),
        )
    ]
    assert [request.url.path.rpartition("/")[2] for request, _ in wire.sent] == [
        "ca",
        "enrol",
        "status",
        "started",
    ]
    assert [form for form in spelled if form in wire.bytes] == []
    assert b"PRIVATE" not in wire.bytes


def test_only_the_certificate_is_fetched_from_somebody_unknown(home: Home, wire: Wire) -> None:
    enrol(home, f"a-secret-token.{digest(CA)}")
    standing(home)
    assert [(request.method, request.url.path) for request, checked in wire.sent if not checked] == [
        ("GET", "/v1/enrolment/ca")
    ]
    assert b"a-secret-token" not in bytes(wire.sent[0][0].url.raw_path) + wire.sent[0][0].content


@pytest.mark.parametrize(
    "certificate",
    [
        pytest.param(CA.replace(b"of", b"off"), id="another coordinator's"),
        pytest.param(CA + b"\n", id="one byte more"),
        pytest.param(b"", id="none"),
    ],
)
def test_a_token_is_not_shown_to_another_coordinator(home: Home, wire: Wire, certificate: bytes) -> None:
    wire.answer = lambda _request: httpx.Response(200, content=certificate)
    with pytest.raises(UserError, match="not the coordinator that gave the token"):
        enrol(home, f"a-secret-token.{digest(CA)}")
    assert len(wire.sent) == 1
    assert b"a-secret-token" not in wire.bytes
    assert not home.ca_certificate.exists()
    assert not home.enrolment.exists()


@pytest.mark.parametrize(
    "token", ["", ".", "no dot", "x.short", f".{'0' * 32}", f"x.{'0' * 33}"], ids=lambda t: t[:10] or "-"
)
def test_what_is_no_token_is_not_sent(home: Home, wire: Wire, token: str) -> None:
    with pytest.raises(UserError, match="not a token"):
        enrol(home, token)
    assert wire.sent == []


@pytest.mark.parametrize(
    "refusal",
    [
        httpx.Response(403, json={"error": "the token is not valid"}),
        httpx.Response(500, content=b"<html>"),
        httpx.Response(403, json=["the token"]),
    ],
    ids=["refused", "broken", "odd"],
)
def test_a_hospital_that_is_refused_is_not_enrolled(home: Home, wire: Wire, refusal: httpx.Response) -> None:
    wire.answer = lambda request: honest(request) if request.method == "GET" else refusal
    with pytest.raises(UserError, match="the coordinator refuses"):
        enrol(home, f"a-secret-token.{digest(CA)}")
    assert not home.enrolment.exists()
    with pytest.raises(UserError, match="not enrolled"):
        Enrolment.of(home)


def test_an_unreachable_coordinator_is_named_with_what_to_look_at(home: Home, wire: Wire) -> None:
    def nobody(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    wire.answer = nobody
    with pytest.raises(UserError) as caught:
        enrol(home, f"a-secret-token.{digest(CA)}")
    assert caught.value.where == "hub.test:9443"
    assert "HTTPS_PROXY" in caught.value.remedy
    assert "a-secret-token" not in str(caught.value)
