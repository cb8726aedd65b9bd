"""Accounts: one-time links, throttled sign-in, sessions that end, tokens; nothing secret is kept or shown."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from toy_console import PASSWORD, Clock

from clinimeta.common.errors import UserError
from clinimeta.common.web.accounts import IDLE, LINK_LIFE, LONGEST, Accounts
from clinimeta.common.web.passwords import fits, hashed, require_good
from clinimeta.common.web.patience import FREE_TRIES, LONGEST_WAIT
from clinimeta.common.web.roles import PERMISSIONS, May, Role, Who


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock) -> Accounts:
    return Accounts.open(tmp_path / "console.sqlite", clock)


def made(accounts: Accounts, role: Role = Role.OPERATOR, name: str = "ada", site: str = "") -> Who:
    account = accounts.use(accounts.link(role, site), name, PASSWORD)
    return Who(account.name, account.role, account.site)


def test_a_first_start_makes_a_link_and_no_account(accounts: Accounts) -> None:
    link = accounts.first_link()
    assert link is not None
    assert accounts.known() == []
    assert accounts.linked(link) == (Role.OPERATOR, "")
    assert accounts.use(link, "ada", PASSWORD).role == Role.OPERATOR
    assert accounts.first_link() is None


def test_a_link_serves_once_and_not_for_ever(accounts: Accounts, clock: Clock) -> None:
    link, late = accounts.link(Role.AUDITOR), accounts.link(Role.AUDITOR)
    accounts.use(link, "ada", PASSWORD)
    clock.pass_(seconds=LINK_LIFE.total_seconds() + 1)
    for one in (link, late, "", "x" * 43):
        assert accounts.linked(one) is None
        with pytest.raises(UserError, match="not valid"):
            accounts.use(one, "bob", PASSWORD)
    assert [one.name for one in accounts.known()] == ["ada"]


def test_a_poor_password_does_not_use_the_link_up(accounts: Accounts) -> None:
    link = accounts.link(Role.AUDITOR)
    for poor in ("short", "ada-ada-ada-ada", "aaaaaaaaaaaaaaa", "x" * 1025):
        with pytest.raises(UserError, match="password"):
            accounts.use(link, "ada", poor)
    with pytest.raises(UserError, match="not a name"):
        accounts.use(link, " ada\n", PASSWORD)
    accounts.use(link, "ada", PASSWORD)


def test_a_link_takes_nobodys_account_unless_it_is_for_it(accounts: Accounts) -> None:
    made(accounts)
    with pytest.raises(UserError, match="has this name already"):
        accounts.use(accounts.link(Role.AUDITOR), "ada", "another long phrase")
    assert accounts.enter("ada", PASSWORD, "a") is not None
    reset = accounts.link(Role.OPERATOR, name="ada")
    accounts.use(reset, "somebody else", "another long phrase")
    assert accounts.enter("ada", PASSWORD, "a") is None
    assert accounts.enter("ada", "another long phrase", "a") == Who("ada", Role.OPERATOR)


@pytest.mark.parametrize(("role", "site"), [(Role.VIEWER, ""), (Role.OPERATOR, "Ulm"), (Role.AUDITOR, "Ulm")])
def test_only_viewers_are_bound_to_a_hospital(accounts: Accounts, role: Role, site: str) -> None:
    with pytest.raises(UserError, match="a viewer sees one hospital"):
        accounts.link(role, site)


def test_wrong_passwords_cost_ever_more_time_and_the_right_one_too(accounts: Accounts, clock: Clock) -> None:
    made(accounts)
    for _ in range(FREE_TRIES):
        assert accounts.enter("ada", "wrong password", "10.0.0.1") is None
    assert accounts.enter("ada", "wrong password", "10.0.0.2") is None
    with pytest.raises(UserError, match="too many wrong passwords") as refused:
        accounts.enter("ada", PASSWORD, "10.0.0.3")
    assert refused.value.remedy == "try again in 2 seconds"
    clock.pass_(seconds=3)
    assert accounts.enter("ada", PASSWORD, "10.0.0.3") is not None
    for _ in range(40):
        clock.pass_(seconds=LONGEST_WAIT.total_seconds())
        accounts.enter("ada", "wrong password", "10.0.0.4")
    with pytest.raises(UserError, match="in 900 seconds"):
        accounts.enter("ada", PASSWORD, "10.0.0.5")


def test_an_address_that_tries_many_names_waits_too(accounts: Accounts) -> None:
    made(accounts)
    for number in range(FREE_TRIES + 1):
        assert accounts.enter(f"name {number}", "wrong password", "10.0.0.1") is None
    with pytest.raises(UserError, match="too many"):
        accounts.enter("ada", PASSWORD, "10.0.0.1")
    assert accounts.enter("ada", PASSWORD, "10.0.0.2") is not None


def test_waiting_survives_a_restart(accounts: Accounts, tmp_path: Path, clock: Clock) -> None:
    for _ in range(FREE_TRIES + 1):
        accounts.enter("ada", "wrong password", "10.0.0.1")
    again = Accounts.open(tmp_path / "console.sqlite", clock)
    with pytest.raises(UserError, match="too many"):
        again.enter("ada", "wrong password", "10.0.0.2")


def test_a_session_ends_without_a_request_and_at_last_anyway(accounts: Accounts, clock: Clock) -> None:
    who = made(accounts)
    secret = accounts.begin(who)
    step = IDLE * 0.9
    for _ in range(int(LONGEST / step)):
        clock.time += step
        session = accounts.session(secret)
        assert session is not None
        assert session.who == who
    clock.time += step
    assert accounts.session(secret) is None
    idle = accounts.begin(who)
    clock.time += IDLE + timedelta(seconds=1)
    assert accounts.session(idle) is None
    clock.time -= IDLE
    assert accounts.session(idle) is None, "what is over stays over"


@pytest.mark.parametrize("how", ["role", "off", "password", "reset"])
def test_sessions_and_tokens_end_with_what_they_stood_for(accounts: Accounts, how: str) -> None:
    made(accounts, name="boss")
    who = made(accounts)
    secret, token = accounts.begin(who), accounts.new_token("ada", "script", timedelta(days=1))
    assert accounts.session(secret) is not None
    assert accounts.bearer(token) == who
    if how == "role":
        accounts.change("ada", role=Role.AUDITOR)
    elif how == "off":
        accounts.change("ada", active=False)
    elif how == "password":
        accounts.set_password("ada", PASSWORD, "another long phrase")
    else:
        accounts.use(accounts.link(Role.OPERATOR, name="ada"), "", "another long phrase")
    assert accounts.session(secret) is None
    assert accounts.bearer(token) is None
    assert accounts.enter("ada", PASSWORD, "a") == (Who("ada", Role.AUDITOR) if how == "role" else None)


def test_nobody_takes_the_last_operator_away(accounts: Accounts) -> None:
    made(accounts)
    for change in ({"role": Role.AUDITOR}, {"active": False}):
        with pytest.raises(UserError, match="nobody could operate"):
            accounts.change("ada", **change)  # type: ignore[arg-type]
    assert accounts.known()[0].role == Role.OPERATOR


def test_a_token_ends(accounts: Accounts, clock: Clock) -> None:
    who = made(accounts)
    token = accounts.new_token("ada", "script", timedelta(days=1))
    assert [one.label for one in accounts.tokens("ada")] == ["script"]
    assert accounts.bearer(token) == who
    clock.pass_(days=2)
    assert accounts.bearer(token) is None
    with pytest.raises(UserError, match="a year"):
        accounts.new_token("ada", "script", timedelta(days=400))


def test_no_secret_is_in_the_file(accounts: Accounts, tmp_path: Path) -> None:
    who = made(accounts)
    secrets = [PASSWORD, accounts.begin(who), accounts.link(Role.AUDITOR)]
    secrets.append(accounts.new_token("ada", "script", timedelta(days=1)))
    assert (tmp_path / "console.sqlite").stat().st_mode & 0o777 == 0o600
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ada" in kept
    assert not any(secret.encode() in kept for secret in secrets)
    session = accounts.session(secrets[1])
    assert session is not None
    assert session.csrf not in repr(session)


def test_a_file_that_is_none_of_ours_is_said(tmp_path: Path) -> None:
    path = tmp_path / "console.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 20)
    path.chmod(0o600)
    with pytest.raises(UserError, match="accounts cannot be used"):
        Accounts.open(path)
    path.chmod(0o644)
    with pytest.raises(UserError, match="private"):
        Accounts.open(path)


def test_a_password_is_known_again_and_kept_under_its_own_salt() -> None:
    kept = hashed(PASSWORD)
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert fits(PASSWORD, kept)
    assert not fits(PASSWORD + " ", kept)
    assert hashed(PASSWORD) != kept
    require_good(PASSWORD, "ada")


def test_only_operators_change_the_federation_and_auditors_change_nothing() -> None:
    changing = {May.STUDY, May.OPERATE}
    assert PERMISSIONS[Role.AUDITOR] & changing == set()
    assert PERMISSIONS[Role.VIEWER] == {May.SELF, May.READ_OWN}
    assert PERMISSIONS[Role.RESEARCHER] & changing == {May.STUDY}
    viewer = Who("eve", Role.VIEWER, "Ulm")
    assert (viewer.sees("Ulm"), viewer.sees("Bern"), viewer.sees("")) == (True, False, False)


def test_two_processes_use_a_link_once(accounts: Accounts, tmp_path: Path, clock: Clock) -> None:
    link, other = accounts.link(Role.AUDITOR), Accounts.open(tmp_path / "console.sqlite", clock)
    accounts.use(link, "ada", PASSWORD)
    with pytest.raises(UserError, match="not valid"):
        other.use(link, "bob", PASSWORD)
    with sqlite3.connect(tmp_path / "console.sqlite") as database:
        assert database.execute("SELECT count(*) FROM links").fetchone() == (0,)
