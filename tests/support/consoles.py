"""A coordinator's folder with hospitals, runs and rounds as after a while, and browsers on its console."""

from dataclasses import dataclass
from pathlib import Path

from fastapi.testclient import TestClient

from clinimeta.common.web.roles import Role
from clinimeta.server.config import Home
from clinimeta.server.console.app import console_app, open_console
from clinimeta.server.console.base import Console
from clinimeta.server.daemon import make_home
from clinimeta.server.database import experiments
from clinimeta.server.store import RunDir
from clinimeta.simulations import studies
from clinimeta.simulations.benchmarks.console_store import MASKED, PLAIN, fill

PASSWORD = "correct horse battery"


@dataclass(frozen=True, slots=True)
class Watched:
    """A console, and its coordinator."""

    console: Console

    @property
    def home(self) -> Home:
        return self.console.home

    def browser(self, role: Role | None = Role.OPERATOR, site: str = "Hospital 000") -> TestClient:
        """A browser in which somebody of this role is signed in."""
        app = console_app(self.console)
        found = TestClient(
            app, base_url="http://127.0.0.1:9446", follow_redirects=False, raise_server_exceptions=False
        )
        if role is not None:
            names = {one.name for one in self.console.accounts.known()}
            if role.value not in names:
                link = self.console.accounts.link(role, site if role == Role.VIEWER else "")
                self.console.accounts.use(link, role.value, PASSWORD)
            answer = found.post("/sign-in", data={"name": role.value, "password": PASSWORD})
            assert answer.status_code == 303, answer.text
        return found

    def csrf(self, browser: TestClient) -> str:
        session = self.console.accounts.session(browser.cookies["clinimeta"])
        assert session is not None
        return session.csrf


def watched(folder: Path, *, hospitals: int = 0, rounds: int = 0) -> Watched:
    """A new coordinator and its console; filled, if hospitals are named."""
    home = make_home(
        folder / "hub", "Heart", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3
    )
    console = open_console(home, {name: studies.text_of(name) for name in studies.names()})
    if hospitals:
        fill(console.database, hospitals=hospitals, rounds=rounds)
        for row in console.database.rows(experiments.select()):
            RunDir.create(home.experiments / row["id"], studies.text_of("heart-disease"))
    return Watched(console)


__all__ = ["MASKED", "PASSWORD", "PLAIN", "Watched", "watched"]
