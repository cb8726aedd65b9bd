"""Accounts: who may use this console, and links that make or change accounts."""

from dataclasses import dataclass

from clinimeta.common.web.accounts import Account
from clinimeta.common.web.roles import WORDS, May, Role, Who
from clinimeta.common.web.shell import Action, Change, Done, Screen
from clinimeta.server import enrolment
from clinimeta.server.console.base import Console, by


@dataclass(frozen=True, slots=True)
class Accounts:
    """All accounts, what roles there are, and which hospitals a viewer may be bound to."""

    accounts: tuple[Account, ...]
    roles: dict[str, str]
    sites: tuple[str, ...]


class Linking(Change):
    """What the account will be that a link makes; `site` for viewers."""

    role: Role
    site: str = ""


class Assigning(Change):
    """An account's role from now on."""

    role: Role
    site: str = ""


def accounts_screen(console: Console, _who: Who) -> Accounts:
    """Accounts by name."""
    names = tuple(site.name for site in enrolment.known(console.database))
    return Accounts(
        tuple(console.accounts.known()), {role.value: words for role, words in WORDS.items()}, names
    )


def link_account(console: Console, who: Who, body: Linking) -> Done:
    """A link with which somebody makes an account."""
    secret = console.accounts.link(body.role, body.site)
    _record(console, who, body, "made a link", f"{body.role.value} {body.site}".strip())
    return Done(f"A link for an account ({body.role.value}), for a day.", f"/link/{secret}")


def reset_password(console: Console, who: Who, body: Change, name: str) -> Done:
    """A link with which somebody sets another password."""
    found = console.accounts.find(name)
    secret = console.accounts.link(found.role, found.site, found.name)
    _record(console, who, body, "made a reset link", name)
    return Done(f"A link with which {name} sets another password, for a day.", f"/link/{secret}")


def assign_role(console: Console, who: Who, body: Assigning, name: str) -> Done:
    """Another role; the account is signed out."""
    console.accounts.change(name, role=body.role, site=body.site)
    _record(console, who, body, "changed a role", name, body.role.value)
    return Done(f"{name} is {body.role.value} now")


def disable_account(console: Console, who: Who, body: Change, name: str) -> Done:
    """Nobody signs in with it any more."""
    console.accounts.change(name, active=False)
    _record(console, who, body, "disabled an account", name)
    return Done(f"{name} is disabled")


def enable_account(console: Console, who: Who, body: Change, name: str) -> Done:
    """It may be used again."""
    console.accounts.change(name, active=True)
    _record(console, who, body, "enabled an account", name)
    return Done(f"{name} is enabled")


def _record(console: Console, who: Who, body: Change, what: str, about: str, detail: str = "") -> None:
    with console.database.change() as connection:
        enrolment.record(connection, by(who, body), what, about, detail)


SCREENS = (Screen("/accounts", May.OPERATE, "Accounts", accounts_screen, "accounts.html", nav=True),)
ACTIONS = (
    Action("/accounts/link", May.OPERATE, "Make a link for an account", Linking, link_account, "/accounts"),
    Action("/accounts/{name}/reset", May.OPERATE, "Reset a password", Change, reset_password, "/accounts"),
    Action("/accounts/{name}/role", May.OPERATE, "Change a role", Assigning, assign_role, "/accounts"),
    Action(
        "/accounts/{name}/disable", May.OPERATE, "Disable an account", Change, disable_account, "/accounts"
    ),
    Action("/accounts/{name}/enable", May.OPERATE, "Enable an account", Change, enable_account, "/accounts"),
)
