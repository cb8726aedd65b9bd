"""A console with two screens and two actions, to test what all consoles share."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastapi.testclient import TestClient

from clinimeta.common.errors import UserError
from clinimeta.common.web.accounts import Accounts
from clinimeta.common.web.headers import guarded
from clinimeta.common.web.pages import environment
from clinimeta.common.web.roles import May, Role, Who
from clinimeta.common.web.shell import Action, Change, Done, Screen, Shell
from clinimeta.common.web.signing_in import add_signing_in

PASSWORD = "correct horse battery"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a screen shows."""

    site: str
    page: int


class Naming(Change):
    """What an action is told."""

    name: str
    sites: tuple[str, ...] = ()


@dataclass(slots=True)
class Toy:
    """What is changed, and the record of it."""

    names: list[str] = field(default_factory=list)
    audit: list[tuple[str, ...]] = field(default_factory=list)


def look(_console: Toy, _who: Who, site: str = "ulm", page: int = 1) -> Seen:
    return Seen(site, page)


def look_at(_console: Toy, _who: Who, site: str) -> Seen:
    if site == "broken":
        raise ZeroDivisionError("the secret 4711")
    if site != "ulm":
        raise UserError("there is no such hospital", found=repr(site), remedy="look at the list")
    return Seen(site, 1)


def name_it(console: Toy, who: Who, body: Naming, site: str) -> Done:
    if body.name == "bad":
        raise UserError("this is not a name", expected="another")
    console.audit.append((who.name, "name a hospital", site, body.reason))
    console.names.append(f"{site} {body.name} {','.join(body.sites)}")
    return Done(f"{site} is now {body.name}")


def reveal(_console: Toy, _who: Who, _body: Change) -> Done:
    return Done("a token", "s3cr3t-token")


SCREENS = (
    Screen("/", May.READ_OWN, "Start", look, "toy.html", nav=True),
    Screen("/sites/{site}", May.READ, "Hospital", look_at, "toy.html"),
    Screen("/audit", May.AUDIT, "Audit", look, "toy.html", nav=True),
)
ACTIONS = (
    Action("/sites/{site}/name", May.OPERATE, "name a hospital", Naming, name_it, "/sites/{site}"),
    Action("/reveal", May.STUDY, "reveal", Change, reveal, "/"),
)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_(self, **time: float) -> None:
        self.time += timedelta(**time)


@dataclass(slots=True)
class Console:
    """The toy, its accounts, and browsers to look at it."""

    toy: Toy
    shell: Shell
    clock: Clock

    @staticmethod
    def at(folder: Path, *, tls: bool = False) -> "Console":
        from jinja2 import ChoiceLoader, DictLoader

        clock, toy = Clock(), Toy()
        pages = environment("clinimeta.common.web")
        body = "{% extends 'base.html' %}{% block title %}Toy{% endblock %}"
        body += "{% block main %}<h1>{{ view.site }}</h1>{% endblock %}"
        assert pages.loader is not None
        pages.loader = ChoiceLoader([DictLoader({"toy.html": body}), pages.loader])
        accounts = Accounts.open(folder / "console.sqlite", clock)
        return Console(toy, Shell("Toy", toy, accounts, pages, SCREENS, ACTIONS, tls=tls), clock)

    def browser(self, name: str = "") -> TestClient:
        """Somebody's browser; signed in, if a name is given."""
        app = self.shell.app()
        add_signing_in(app, self.shell)
        base = f"{'https' if self.shell.tls else 'http'}://127.0.0.1:9446"
        found = TestClient(
            guarded(app, frozenset({"127.0.0.1"}), self.shell.tls),
            base_url=base,
            follow_redirects=False,
            raise_server_exceptions=False,
        )
        if name:
            answer = found.post("/sign-in", data={"name": name, "password": PASSWORD})
            assert answer.status_code == 303, answer.text
        return found

    def account(self, role: Role, name: str = "", site: str = "") -> str:
        """A new account."""
        link = self.shell.accounts.link(role, site)
        return self.shell.accounts.use(link, name or role.value, PASSWORD).name

    def csrf(self, browser: TestClient) -> str:
        session = self.shell.accounts.session(browser.cookies[self.shell.cookie])
        assert session is not None
        return session.csrf
