"""What every screen of the operator's console is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clinimeta.common.errors import UserError
from clinimeta.common.web.accounts import Accounts
from clinimeta.common.web.roles import Who
from clinimeta.common.web.shell import Change
from clinimeta.server.audit import Actor
from clinimeta.server.config import Home
from clinimeta.server.database import Database


@dataclass(frozen=True, slots=True)
class Console:
    """The coordinator's folder, its database, the console's accounts; and studies to choose from, by name."""

    home: Home
    database: Database
    accounts: Accounts
    studies: Mapping[str, str] = field(default_factory=dict)


def by(who: Who, body: Change) -> Actor:
    """Who does it, in which role, and why, for the record of events."""
    return Actor(who.name, who.role.value, body.reason)


def require_sees(who: Who, site: str) -> None:
    """Do nothing, if they may look at this hospital.

    Raises:
        UserError: they see another one; said as if this one did not exist.
    """
    if not who.sees(site):
        raise UserError("there is no such hospital", found=repr(site), remedy="look at the list")
