"""Enrolment: who waits, who was invited; invite, approve, revoke, rotate, withdraw."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from clinimeta.common.secagg.identity import fingerprint
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Action, Change, Done, Screen
from clinimeta.server import enrolment, invitations
from clinimeta.server.console.base import Console, by
from clinimeta.server.enrolment_api import ca_digest

Hours = Annotated[float, Field(ge=0.02, le=720)]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A hospital as it is enrolled; `fingerprint` is to be compared by telephone before it is approved."""

    name: str
    state: str
    fingerprint: str
    software: str
    enrolled_at: str


@dataclass(frozen=True, slots=True)
class Enrolment:
    """All hospitals, those that wait first, and the tokens that can still be used."""

    sites: tuple[Enrolled, ...]
    invitations: tuple[invitations.Invitation, ...]


class Inviting(Change):
    """Whom to invite; `automatic`: whoever uses the token is approved by that."""

    site: str
    hours: Hours = 48.0
    automatic: bool = False


class Rotating(Change):
    """For how long the token for new keys is good."""

    hours: Hours = 48.0
    automatic: bool = False


def enrolment_screen(console: Console, _who: Who) -> Enrolment:
    """Hospitals by state and name, and open invitations."""
    sites = [
        Enrolled(one.name, one.state, fingerprint(one.keys.identity), one.software, one.enrolled_at)
        for one in enrolment.known(console.database)
    ]
    first = {"waiting": 0, "approved": 1, "revoked": 2}
    return Enrolment(
        tuple(sorted(sites, key=lambda one: (first[one.state], one.name))),
        tuple(invitations.open_invitations(console.database)),
    )


def invite(console: Console, who: Who, body: Inviting) -> Done:
    """Make a one-time token."""
    token = enrolment.invite(
        console.database, body.site, timedelta(hours=body.hours), by(who, body), automatic=body.automatic
    )
    return Done(f"A token for {body.site}, once, within {body.hours:g} hours.", _whole(console, token))


def rotate(console: Console, who: Who, body: Rotating, site: str) -> Done:
    """Make a token with which a hospital replaces its keys."""
    token = enrolment.invite(
        console.database,
        site,
        timedelta(hours=body.hours),
        by(who, body),
        automatic=body.automatic,
        purpose="rotate",
    )
    return Done(f"A token for new keys of {site}, once, within {body.hours:g} hours.", _whole(console, token))


def approve(console: Console, who: Who, body: Change, site: str) -> Done:
    """Let a hospital that waits take part."""
    enrolment.approve(console.database, site, by(who, body))
    return Done(f"{site} is approved; it connects within seconds")


def revoke(console: Console, who: Who, body: Change, site: str) -> Done:
    """Let a hospital take part no longer."""
    enrolment.revoke(console.database, site, by(who, body))
    return Done(f"{site} is revoked; its keys are refused from now on")


def withdraw(console: Console, who: Who, body: Change, site: str) -> Done:
    """Take a hospital's open invitations back."""
    count = invitations.withdraw(console.database, site, by(who, body))
    return Done(f"{count} invitations of {site} are withdrawn")


def _whole(console: Console, token: str) -> str:
    return f"{token}.{ca_digest(console.home.ca_certificate.read_bytes())}"


SCREENS = (Screen("/enrolment", May.READ, "Enrolment", enrolment_screen, "enrolment.html", nav=True),)
ACTIONS = (
    Action("/enrolment/invite", May.OPERATE, "Invite a hospital", Inviting, invite, "/enrolment"),
    Action("/enrolment/{site}/approve", May.OPERATE, "Approve a hospital", Change, approve, "/enrolment"),
    Action("/enrolment/{site}/revoke", May.OPERATE, "Revoke a hospital", Change, revoke, "/enrolment"),
    Action(
        "/enrolment/{site}/rotate", May.OPERATE, "Rotate a hospital's keys", Rotating, rotate, "/enrolment"
    ),
    Action("/enrolment/{site}/withdraw", May.OPERATE, "Withdraw invitations", Change, withdraw, "/enrolment"),
)
