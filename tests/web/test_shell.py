"""The frame of a console: who gets in, what a request must bring, what every answer carries."""

import logging
import re
from pathlib import Path

import pytest
from toy_console import ACTIONS, PASSWORD, SCREENS, Console

from clinimeta.common.errors import UserError
from clinimeta.common.web.headers import HEADERS, LARGEST, require_safe_bind
from clinimeta.common.web.roles import PERMISSIONS, Role
from clinimeta.common.web.shell import API

REASON = "because of a test"


@pytest.fixture
def console(tmp_path: Path) -> Console:
    found = Console.at(tmp_path)
    for role in Role:
        found.account(role, site="ulm" if role == Role.VIEWER else "")
    return found


@pytest.mark.parametrize("role", [None, *Role], ids=str)
def test_every_route_with_every_role(console: Console, role: Role | None) -> None:
    browser = console.browser(role.value if role else "")
    allowed = PERMISSIONS[role] if role else frozenset()
    for screen in SCREENS:
        path = screen.path.format(site="ulm")
        for where, nobody in ((path, 303), (API + path, 401)):
            wanted = 200 if screen.may in allowed else nobody if role is None else 403
            assert browser.get(where).status_code == wanted, (role, where)
    csrf = console.csrf(browser) if role else ""
    for action in ACTIONS:
        path, body = action.path.format(site="ulm"), {"reason": REASON}
        if "name" in action.body.model_fields:
            body["name"] = "x"
        form = browser.post(path, data={**body, "csrf": csrf})
        json = browser.post(API + path, json=body, headers={"x-csrf-token": csrf})
        wanted = {200, 303} if action.may in allowed else {401} if role is None else {403}
        assert {form.status_code, json.status_code} <= wanted, (role, path)
    changed = bool(role and "operate" in {may.value for may in allowed})
    assert len(console.toy.names) == (2 if changed else 0)


def test_a_page_and_its_json_say_the_same(console: Console) -> None:
    browser = console.browser("auditor")
    assert browser.get(f"{API}/?site=bern&page=3").json() == {"site": "bern", "page": 3}
    assert "<h1>bern</h1>" in browser.get("/?site=bern").text


def test_a_change_needs_a_reason_and_is_written_down(console: Console) -> None:
    browser = console.browser("operator")
    csrf = console.csrf(browser)
    for reason in ("", "  ", "x" * 501):
        answer = browser.post("/sites/ulm/name", data={"name": "x", "reason": reason, "csrf": csrf})
        assert answer.status_code == 422
        assert "Reason" in answer.text or "reason" in answer.text
    assert console.toy.audit == []
    fields = {"name": "x", "sites": ["a", "b"], "reason": f" {REASON} ", "csrf": csrf}
    answer = browser.post("/sites/ulm/name", data=fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sites/ulm")
    assert console.toy.names == ["ulm x a,b"]
    assert console.toy.audit == [("operator", "name a hospital", "ulm", REASON)]
    assert '<div role="status" class="notice">ulm is now x</div>' in browser.get("/").text
    assert '<div role="status" class="notice"></div>' in browser.get("/").text, "once"


def test_what_cannot_be_done_is_explained_and_not_written_down(console: Console) -> None:
    browser = console.browser("operator")
    csrf = console.csrf(browser)
    body = {"name": "bad", "reason": REASON}
    answer = browser.post(f"{API}/sites/ulm/name", json=body, headers={"x-csrf-token": csrf})
    assert answer.status_code == 400
    assert answer.json() == {"error": {"text": "this is not a name", "expected": "another"}}
    page = browser.post("/sites/ulm/name", data={**body, "csrf": csrf})
    assert page.status_code == 400
    assert "This is not a name." in page.text
    assert console.toy.audit == []


def test_a_secret_is_shown_once_and_in_no_cookie(console: Console) -> None:
    browser = console.browser("operator")
    answer = browser.post("/reveal", data={"reason": REASON, "csrf": console.csrf(browser)})
    assert answer.status_code == 200
    assert "s3cr3t-token" in answer.text
    assert "s3cr3t" not in str(answer.headers)
    assert "s3cr3t" not in str(console.toy.audit)


# Forged requests


@pytest.mark.parametrize(
    "forged",
    [
        {"csrf": ""},
        {"csrf": "x" * 43},
        {"headers": {"sec-fetch-site": "cross-site"}},
        {"headers": {"sec-fetch-site": "same-site"}},
        {"headers": {"origin": "http://evil.example"}},
        {"headers": {"origin": "null"}},
    ],
    ids=str,
)
def test_another_sites_page_changes_nothing(console: Console, forged: dict[str, object]) -> None:
    browser = console.browser("operator")
    csrf = forged.get("csrf", console.csrf(browser))
    headers = forged.get("headers", {})
    body = {"name": "x", "reason": REASON}
    form = browser.post("/sites/ulm/name", data={**body, "csrf": csrf}, headers=headers)  # type: ignore[arg-type, dict-item]
    json = browser.post(
        f"{API}/sites/ulm/name",
        json=body,
        headers={"x-csrf-token": csrf, **headers},  # type: ignore[arg-type, dict-item]
    )
    assert (form.status_code, json.status_code) == (403, 403)
    assert console.toy.names == []


def test_nobody_is_signed_in_or_out_by_another_site(console: Console) -> None:
    evil = {"origin": "http://evil.example"}
    browser = console.browser()
    fields = {"name": "operator", "password": PASSWORD}
    assert browser.post("/sign-in", data=fields, headers=evil).status_code == 403
    browser = console.browser("operator")
    assert browser.post("/sign-out", data={"csrf": "wrong"}).status_code == 403
    assert browser.get("/").status_code == 200
    assert browser.post("/sign-out", data={"csrf": console.csrf(browser)}).status_code == 303
    assert browser.get("/").status_code == 303


def test_a_program_with_a_token_needs_no_form(console: Console) -> None:
    from datetime import timedelta

    token = console.shell.accounts.new_token("operator", "script", timedelta(days=1))
    program = console.browser()
    bearer = {"authorization": f"Bearer {token}"}
    body = {"name": "x", "reason": REASON}
    assert program.post(f"{API}/sites/ulm/name", json=body, headers=bearer).json()["notice"] == "ulm is now x"
    assert program.get(f"{API}/", headers={"authorization": "Bearer wrong"}).status_code == 401


# What every answer carries


def test_every_answer_carries_the_headers(console: Console) -> None:
    browser = console.browser("operator")
    answers = [
        browser.get(path) for path in ("/", "/nowhere", "/sites/broken", f"{API}/", "/static/console.css")
    ]
    answers.append(console.browser().get("/"))
    answers.append(browser.post("/sites/ulm/name", data={}))
    answers.append(browser.get("/", headers={"host": "evil.example"}))
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, answer.url
        wanted = "max-age=3600" if "/static/" in str(answer.url) else "no-store"
        assert answer.headers["cache-control"] == wanted


def test_no_page_has_script_or_style_in_it(console: Console) -> None:
    browser = console.browser("operator")
    pages = ["/", "/account", "/nowhere", "/sites/nobody"]
    texts = [browser.get(path).text for path in pages] + [console.browser().get("/sign-in").text]
    for text in texts:
        assert "<main" in text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", text)
        assert not re.search(r"(src|href|action)=[\"']?(https?:)?//", text)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "evil.example:9446"])
def test_another_hosts_name_gets_no_page(console: Console, host: str) -> None:
    assert console.browser("operator").get("/", headers={"host": host}).status_code == 421


def test_a_large_body_is_refused(console: Console) -> None:
    answer = console.browser("operator").post("/sign-out", content=b"x" * (LARGEST + 1))
    assert answer.status_code == 413


def test_a_fault_of_ours_tells_nothing_of_itself(console: Console) -> None:
    browser = console.browser("operator")
    for path in ("/sites/broken", f"{API}/sites/broken"):
        answer = browser.get(path)
        assert answer.status_code == 500
        assert "4711" not in answer.text
        assert "Traceback" not in answer.text


def test_what_is_not_there_is_said(console: Console) -> None:
    browser = console.browser("operator")
    assert browser.get("/nowhere").status_code == 404
    answer = browser.get(f"{API}/sites/bern")
    assert (answer.status_code, answer.json()["error"]["found"]) == (404, "'bern'")
    assert "What to do" in browser.get("/sites/bern").text
    assert browser.get(f"{API}/?page=x").status_code == 422


# Signing in


def test_the_cookie_is_the_browsers_own(tmp_path: Path) -> None:
    for tls in (False, True):
        (tmp_path / str(tls)).mkdir()
        console = Console.at(tmp_path / str(tls), tls=tls)
        console.account(Role.OPERATOR)
        answer = console.browser().post("/sign-in", data={"name": "operator", "password": PASSWORD})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/" in cookie
        assert ("Secure" in cookie, cookie.startswith("__Host-")) == (tls, tls)
        assert "Domain" not in cookie
        assert ("strict-transport-security" in answer.headers) == tls


def test_a_session_from_before_does_not_live_on(console: Console) -> None:
    browser = console.browser("auditor")
    old = browser.cookies[console.shell.cookie]
    browser.post("/sign-in", data={"name": "operator", "password": PASSWORD})
    assert browser.cookies[console.shell.cookie] != old
    assert console.shell.accounts.session(old) is None


def test_wrong_words_say_neither_which_nor_more(console: Console) -> None:
    browser = console.browser()
    known = browser.post("/sign-in", data={"name": "operator", "password": "wrong"})
    unknown = browser.post("/sign-in", data={"name": "nobody", "password": "wrong"})
    assert known.status_code == unknown.status_code == 401
    assert known.text == unknown.text
    for _ in range(6):
        late = browser.post("/sign-in", data={"name": "operator", "password": "wrong"})
    assert "Too many wrong passwords: try again in" in late.text


@pytest.mark.parametrize("then", ["//evil.example", "https://evil.example", "/\\evil.example", "evil"])
def test_signing_in_leads_nowhere_else(console: Console, then: str) -> None:
    fields = {"name": "operator", "password": PASSWORD, "then": then}
    assert console.browser().post("/sign-in", data=fields).headers["location"] == "/"


def test_a_link_makes_an_account_in_the_browser(console: Console) -> None:
    link = console.shell.accounts.link(Role.RESEARCHER)
    browser = console.browser()
    assert "researcher" in browser.get(f"/link/{link}").text
    fields = {"name": "rosa", "password": "another long phrase", "again": "another long phrasé"}
    assert "differ" in browser.post(f"/link/{link}", data=fields).text
    answer = browser.post(f"/link/{link}", data={**fields, "again": fields["password"]})
    assert answer.status_code == 303
    assert "rosa" in browser.get("/").text
    assert browser.get(f"/link/{link}").status_code == 404


def test_ones_own_password_and_tokens(console: Console) -> None:
    browser = console.browser("auditor")
    csrf = console.csrf(browser)
    shown = browser.post("/account/token", data={"label": "script", "csrf": csrf}).text
    token = re.search(r"cm_[\w-]{43}", shown)
    assert token is not None
    assert (
        console.browser().get(f"{API}/", headers={"authorization": f"Bearer {token[0]}"}).status_code == 200
    )
    assert "script" in browser.get("/account").text
    fields = {"old": "wrong", "password": "another long phrase", "again": "another long phrase", "csrf": csrf}
    assert "old password is wrong" in browser.post("/account/password", data=fields).text.lower()
    assert browser.post("/account/password", data={**fields, "old": PASSWORD}).status_code == 303
    assert browser.get("/").status_code == 303
    assert (
        console.browser().get(f"{API}/", headers={"authorization": f"Bearer {token[0]}"}).status_code == 401
    )


ANYWHERE = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("host", "tls", "good"), [("127.0.0.1", False, True), (ANYWHERE, False, False), (ANYWHERE, True, True)]
)
def test_without_tls_only_this_machine(host: str, tls: bool, good: bool) -> None:
    if good:
        require_safe_bind(host, tls)
    else:
        with pytest.raises(UserError, match="without TLS"):
            require_safe_bind(host, tls)


def test_the_interface_is_published(console: Console) -> None:
    found = console.browser().get(f"{API}/openapi.json").json()["paths"]
    assert set(found) == {f"{API}{one.path}" for one in (*SCREENS, *ACTIONS)}
    assert found[f"{API}/sites/{{site}}"]["get"]["parameters"][0]["name"] == "site"


def test_nothing_secret_is_logged(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    browser = console.browser("operator")
    browser.get("/")
    assert PASSWORD not in caplog.text
    assert browser.cookies[console.shell.cookie] not in caplog.text
