"""The hospital's console: every screen for every role, decisions, settings; no row of the table anywhere."""

import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from guarded import BASE, ME, masked

from clinimeta.client.approvals import Approvals
from clinimeta.client.config import Home
from clinimeta.client.console.app import ACTIONS, SCREENS, console_app, open_console, served
from clinimeta.client.console.base import Console
from clinimeta.client.console.data import column_of
from clinimeta.client.folder import make_home
from clinimeta.client.hospital import open_hospital, policy_of
from clinimeta.common.web.roles import PERMISSIONS, Role
from clinimeta.common.web.shell import API

PASSWORD, REASON = "correct horse battery", "vote of the ethics board"
PLANTED = [f"Zyx-{i:03d}" for i in range(80)]
ROWS = "age,crp,sick,person,ward\n" + "".join(
    f"{50 + i % 30}.{730914 + i},{i % 7},{'yes' if i % 2 else 'no'},{PLANTED[i]},"
    f"{'isolation' if i < 3 else 'general' if i % 2 else 'heart'}\n"
    for i in range(80)
)


@pytest.fixture
def console(tmp_path: Path) -> Console:
    home = make_home(tmp_path / "site", address="hub:9443", data="p.csv", port=9543, health_port=1)
    (home.path / "p.csv").write_text(ROWS)
    who = {"site": ME, "coordinator": "hub", "coordinator_key": "00" * 32}
    home.enrolment.write_text(json.dumps(who))
    open_hospital(home)
    found = open_console(home)
    for role in (Role.OPERATOR, Role.AUDITOR, Role.RESEARCHER):
        found.accounts.use(found.accounts.link(role), role.value, PASSWORD)
    return found


def browser(console: Console, role: Role | None = Role.OPERATOR) -> TestClient:
    found = TestClient(
        console_app(console),
        base_url="http://127.0.0.1:9546",
        follow_redirects=False,
        raise_server_exceptions=False,
    )
    if role:
        assert found.post("/sign-in", data={"name": role.value, "password": PASSWORD}).status_code == 303
    return found


def csrf(console: Console, found: TestClient) -> str:
    session = console.accounts.session(found.cookies["clinimeta"])
    assert session is not None
    return session.csrf


@pytest.fixture
def waiting(console: Console) -> Approvals:
    approvals = Approvals(console.home.approvals)
    approvals.keep(masked())
    approvals.keep(BASE)
    return approvals


def test_every_screen_is_a_page_and_json_and_no_row_is_in_either(
    console: Console, waiting: Approvals
) -> None:
    waiting.approve(masked().digest, "Grace", "first")
    found = browser(console)
    for screen in SCREENS:
        page, twin = found.get(screen.path), found.get(API + screen.path)
        assert (page.status_code, twin.status_code) == (200, 200), page.text[-1500:]
        assert page.text.count("<h1>") == 1
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page.text)
        for text in (page.text, twin.text):
            assert not any(name in text for name in PLANTED)
            assert not re.search(r"\.7309\d\d", text)
            assert "isolation" not in text, "three patients are too few"
    assert "heart 5 or more" in found.get("/data").text or "general" in found.get("/data").text


@pytest.mark.parametrize("role", [None, *Role], ids=str)
def test_every_route_with_every_role(console: Console, waiting: Approvals, role: Role | None) -> None:
    if role == Role.VIEWER:
        console.accounts.use(console.accounts.link(role, "elsewhere"), role.value, PASSWORD)
    found = browser(console, role)
    allowed = PERMISSIONS[role] if role else frozenset()
    for screen in SCREENS:
        status = found.get(API + screen.path).status_code
        assert status == (200 if screen.may in allowed else 403 if role else 401), screen.path
    token = csrf(console, found) if role else ""
    for action in ACTIONS:
        path = API + action.path.format(plan=BASE.digest)
        body = {"reason": REASON} | ({"text": "x"} if "text" in action.body.model_fields else {})
        status = found.post(path, json=body, headers={"x-csrf-token": token}).status_code
        if action.may in allowed:
            assert status in (200, 400), path
        else:
            assert status == (403 if role else 401), path
    if role != Role.OPERATOR:
        assert waiting.decisions().approved == {}


def test_a_person_decides_with_a_name_and_a_reason(console: Console, waiting: Approvals) -> None:
    found = browser(console)
    token = csrf(console, found)
    page = found.get("/studies").text
    assert "It is the first of its kind here." in page
    assert "(secure_aggregation_required)" in page
    assert (
        found.post(f"/studies/{BASE.digest}/approve", data={"reason": "", "csrf": token}).status_code == 422
    )
    assert waiting.decisions().approved == {}
    answer = found.post(f"/studies/{BASE.digest}/approve", data={"reason": REASON, "csrf": token})
    assert answer.status_code == 303
    approval = waiting.decisions().approved[BASE.digest].approval
    assert approval is not None
    assert (approval.by, approval.reason) == ("operator", REASON)
    assert REASON in found.get("/studies").text
    found.post(f"/studies/{BASE.digest}/turn-down", data={"reason": "changed our mind", "csrf": token})
    assert waiting.decisions().approved == {}
    lines = [json.loads(line) for line in console.home.changes.read_text().splitlines()]
    assert [(one["what"], one["about"], one["reason"]) for one in lines] == [
        ("approved a study", BASE.digest, REASON),
        ("turned a study down", BASE.digest, "changed our mind"),
    ]
    assert console.home.changes.stat().st_mode & 0o777 == 0o600
    assert (
        found.post(f"/studies/{'0' * 64}/approve", data={"reason": REASON, "csrf": token}).status_code == 400
    )


@pytest.mark.usefixtures("waiting")
def test_settings_are_tried_before_they_are_kept(console: Console) -> None:
    found, file = browser(console), console.home.path / "site.toml"
    token, before = csrf(console, found), file.read_text()
    looser = before.replace('secure_aggregation = "required"', 'secure_aggregation = "optional"')
    tried = found.post("/policy/try", data={"text": looser, "reason": "", "csrf": token})
    assert tried.status_code == 200, tried.text
    assert "would be answered" in tried.text
    assert file.read_text() == before
    assert not console.home.changes.exists()
    for wrong, says in (
        (before + "\nmin_cohrt = 3\n", "unknown key"),
        ("x = ", "not valid toml"),
        (before.replace("min_rows = 20", "min_rows = 0"), "does not fit"),
        (before.replace('kind = "csv"', 'kind = "cvs"'), "cvs"),
    ):
        for path in ("/policy/try", "/policy/keep"):
            answer = found.post(path, data={"text": wrong, "reason": REASON, "csrf": token})
            assert answer.status_code == 400, (path, wrong[-40:])
            assert says in answer.text.lower()
        assert file.read_text() == before
    digest = found.get(f"{API}/policy").json()["digest"]
    kept = found.post("/policy/keep", data={"text": looser, "reason": REASON, "csrf": token})
    assert kept.status_code == 303
    assert policy_of(Home(console.home.path)).secure_aggregation == "optional"
    assert (console.home.policies / f"{digest}.toml").read_text() == before
    assert found.get(f"{API}/policy").json()["digest"] != digest


@pytest.mark.usefixtures("waiting")
def test_the_status_is_a_sentence(console: Console) -> None:
    found = browser(console)
    status = found.get(f"{API}/").json()
    assert status["sentence"] == (
        f"{ME} takes no part: its daemon does not run (clinimeta site up); 2 studies wait for your decision."
    )
    assert not status["well"]
    assert (status["spent"], status["limit"]) == (0.0, 10.0)
    console.home.enrolment.unlink()
    assert "not enrolled yet" in found.get("/").text


def test_the_certificate_is_handed_out(console: Console) -> None:
    answer = browser(console).get("/ledger/certificate")
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    assert browser(console, None).get("/ledger/certificate").status_code == 303


def test_a_table_that_cannot_be_read_is_said(console: Console) -> None:
    (console.home.path / "p.csv").unlink()
    assert "there is no such file" in browser(console).get("/data").text


def test_only_this_machine_is_answered(console: Console) -> None:
    for host, status in (("127.0.0.1:9546", 303), ("localhost:9546", 303), ("hospital.example", 421)):
        found = TestClient(served(console), base_url=f"http://{host}", follow_redirects=False)
        assert found.get("/").status_code == status


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        (["1", "2"] * 100, "1 100, 2 100"),
        (["a"] * 50 + ["b"] * 3, "a 5 or more, 1 rare value not shown"),
        ([str(n) for n in range(1000, 1200)], "too few, or an identifier: not shown"),
        ([f"{n / 7:.5f}" for n in range(30)], "too few, or an identifier: not shown"),
        ([f"{100 + n % 60}.5" for n in range(300)], "quartiles 110, 130, 140"),
        (["", "?", "NA"] * 10, "empty"),
    ],
)
def test_of_a_column_only_sums_are_shown(cells: list[str], shown: str) -> None:
    assert column_of("x", cells).summary == shown
