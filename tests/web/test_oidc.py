"""Signing in through a provider: a small real one on loopback, and everything that could be forged."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from toy_console import PASSWORD, Console

from clinimeta.common.errors import UserError
from clinimeta.common.web.headers import guarded
from clinimeta.common.web.oidc import COOKIE, Client, add_oidc, read_client
from clinimeta.common.web.roles import Role
from clinimeta.common.web.signing_in import add_signing_in


@dataclass(slots=True)
class Login:
    """A provider: says who `claims` says, to whoever shows the verifier that fits the challenge."""

    issuer: str = ""
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "one"}))
    claims: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    signed_by: ECKey | None = None
    given: list[dict[str, str]] = field(default_factory=list)

    def authorize(self, url: str) -> dict[str, str]:
        """What the browser brings back from the provider's page."""
        self.asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        return {"state": self.asked["state"], "code": "the-code"}

    def token(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self.given.append(form)
        challenge = create_s256_code_challenge(form.get("code_verifier", ""))
        if form.get("code") != "the-code" or challenge != self.asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": "clinimeta",
            "sub": "4711",
            "exp": now + 300,
            "iat": now,
            "nonce": self.asked["nonce"],
            "preferred_username": "rosa",
            "groups": ["staff", "auditors"],
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        text = jwt.encode({"alg": "ES256", "kid": "one"}, claims, self.signed_by or self.key)
        return 200, {"access_token": "x", "token_type": "Bearer", "id_token": text}

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, Any]:
        if path == "/.well-known/openid-configuration":
            found = {"issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize"}
            return 200, found | {"token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/keys"}
        if path == "/keys":
            return 200, KeySet([self.key]).as_dict(private=False)
        return self.token(form) if path == "/token" else (404, {})


@pytest.fixture
def login() -> Iterator[Login]:
    made = Login()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say({})

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["content-length"])).decode()
            self._say({name: values[0] for name, values in parse_qs(text).items()})

        def _say(self, form: dict[str, str]) -> None:
            status, body = made.answer(self.path, form)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.issuer = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


SETTINGS = """
[oidc]
title = "Hospital network"
issuer = "{issuer}"
client_id = "clinimeta"
secret_file = "oidc.secret"
redirect = "http://127.0.0.1:9446/sign-in/oidc/back"
[oidc.roles]
heads = "operator"
auditors = "auditor"
guests = "viewer"
"""


@dataclass(slots=True)
class Door:
    """A console whose door the provider opens."""

    console: Console
    client: Client
    login: Login

    def browser(self) -> TestClient:
        app = self.console.shell.app()
        add_signing_in(app, self.console.shell)
        add_oidc(app, self.console.shell, self.client)
        return TestClient(
            guarded(app, frozenset({"127.0.0.1"}), False),
            base_url="http://127.0.0.1:9446",
            follow_redirects=False,
            raise_server_exceptions=False,
        )

    def through(self, browser: TestClient) -> int:
        """Go to the provider and come back; the status."""
        url = browser.get("/sign-in/oidc").headers["location"]
        return browser.get("/sign-in/oidc/back", params=self.login.authorize(url)).status_code


@pytest.fixture
def door(tmp_path: Path, login: Login) -> Door:
    (tmp_path / "console.toml").write_text(SETTINGS.format(issuer=login.issuer))
    (tmp_path / "oidc.secret").write_text("s3cr3t\n")
    (tmp_path / "oidc.secret").chmod(0o600)
    client = read_client(tmp_path / "console.toml")
    assert client is not None
    console = Console.at(tmp_path)
    console.clock.time = console.clock.time.fromtimestamp(time.time(), console.clock.time.tzinfo)
    return Door(console, client, login)


def test_somebody_with_a_role_there_gets_in_with_it(door: Door) -> None:
    browser = door.browser()
    assert door.through(browser) == 200
    assert "rosa" in browser.get("/").text
    (account,) = door.console.shell.accounts.known()
    assert (account.name, account.role) == ("rosa", Role.AUDITOR)
    assert browser.get("/audit").status_code == 200
    assert door.login.given[0]["code_verifier"] not in str(door.login.asked)
    assert door.login.asked["code_challenge_method"] == "S256"
    assert "s3cr3t" not in repr(door.client)


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": ["staff"]},
        {"groups": None},
        {"groups": {"auditors": True}},
        {"groups": ["guests"]},
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"iss": "https://another.example"},
        {"exp": 1},
        {"sub": None},
        {"azp": "another"},
        {"preferred_username": " rosa"},
        {"preferred_username": ["rosa"]},
    ],
    ids=str,
)
def test_what_the_provider_must_say_and_does_not_opens_nothing(door: Door, claims: dict[str, Any]) -> None:
    door.login.claims = claims
    browser = door.browser()
    assert door.through(browser) in (400, 403)
    assert browser.get("/").status_code == 303
    assert door.console.shell.accounts.known() == []


def test_another_key_opens_nothing(door: Door) -> None:
    door.login.signed_by = ECKey.generate_key("P-256", {"kid": "one"})
    assert door.through(door.browser()) == 400
    assert door.console.shell.accounts.known() == []


def test_a_flow_is_one_browsers_once_and_not_for_ever(door: Door) -> None:
    mine, evil = door.browser(), door.browser()
    back = door.login.authorize(evil.get("/sign-in/oidc").headers["location"])
    assert mine.get("/sign-in/oidc/back", params=back).status_code == 400, "begun in another browser"
    mine.get("/sign-in/oidc")
    assert mine.get("/sign-in/oidc/back", params=back).status_code == 400
    fresh = door.browser()
    back = door.login.authorize(fresh.get("/sign-in/oidc").headers["location"])
    cookie = fresh.cookies[COOKIE]
    assert fresh.get("/sign-in/oidc/back", params=back).status_code == 200
    fresh.cookies.set(COOKIE, cookie)
    assert fresh.get("/sign-in/oidc/back", params=back).status_code == 400, "used"
    late = door.browser()
    back = door.login.authorize(late.get("/sign-in/oidc").headers["location"])
    door.console.clock.pass_(minutes=11)
    assert late.get("/sign-in/oidc/back", params=back).status_code == 400
    assert late.get("/sign-in/oidc/back", params={"error": "access_denied"}).status_code == 403


def test_an_account_with_a_password_is_not_taken_over(door: Door) -> None:
    door.console.account(Role.OPERATOR, "rosa")
    assert door.through(door.browser()) == 400
    (account,) = door.console.shell.accounts.known()
    assert account.role == Role.OPERATOR


def test_no_password_fits_an_account_of_the_providers(door: Door) -> None:
    door.through(door.browser())
    browser = door.browser()
    for password in (PASSWORD, "", f"vouched for by {door.login.issuer}"):
        assert browser.post("/sign-in", data={"name": "rosa", "password": password}).status_code == 401


def test_another_role_there_is_another_role_here_and_a_disabled_account_stays_so(door: Door) -> None:
    first = door.browser()
    door.through(first)
    door.login.claims = {"groups": ["auditors", "heads"]}
    second = door.browser()
    door.through(second)
    assert first.get("/").status_code == 303, "signed out"
    assert door.console.shell.accounts.known()[0].role == Role.OPERATOR
    door.console.account(Role.OPERATOR, "ada")
    door.console.shell.accounts.change("rosa", active=False)
    assert second.get("/").status_code == 303
    assert door.through(door.browser()) == 400


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("client_id", "client"), "is missing"),
        (('"auditor"', '"boss"'), "does not fit"),
        (("http://127.0.0.1", "http://login.example"), "over TLS"),
        (("oidc.secret", "no.secret"), "missing"),
    ],
)
def test_settings_that_cannot_be_used_are_said(
    tmp_path: Path, door: Door, change: tuple[str, str], says: str
) -> None:
    file = tmp_path / "console.toml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UserError, match=says):
        read_client(file)
    file.unlink()
    assert read_client(file) is None
    assert door.client.provider.title == "Hospital network"
