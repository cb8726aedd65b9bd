"""How a hospital becomes known: invited with a token, enrolled with its public keys, approved by a person.

A token serves once and not for ever; of it only a hash is kept. Private keys never leave the hospital.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from clinimeta.common.errors import UserError, nearest
from clinimeta.server import audit
from clinimeta.server.audit import Actor, By
from clinimeta.server.database import Database, checkpoints, invitations, sites

TOKEN_BYTES = 32
LONGEST_LIFE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Keys:
    """A hospital's public keys: its node's (P-384, PEM as flwr sends it) and its own (Ed25519, 32 bytes)."""

    node: bytes
    identity: bytes


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital as the coordinator knows it. `state`: waiting, approved or revoked."""

    name: str
    state: str
    keys: Keys
    node_id: int | None
    software: str
    enrolled_at: str
    decided_at: str | None


def now() -> datetime:
    """The time (UTC)."""
    return datetime.now(UTC)


def invite(
    database: Database,
    site: str,
    life: timedelta,
    who: By,
    *,
    automatic: bool = False,
    purpose: str = "enrol",
) -> str:
    """A new token for one hospital, valid for `life`; with `automatic` its use is its approval.

    Raises:
        UserError: the name is not usable or taken, or the life is not between a minute and 30 days.
    """
    if not 0 < len(site) <= 200 or not site.isprintable() or site != site.strip():
        raise UserError(
            "this is not a hospital's name",
            found=repr(site),
            expected="1 to 200 printable characters, no spaces around them",
        )
    if not timedelta(minutes=1) <= life <= LONGEST_LIFE:
        raise UserError("a token lives from a minute to 30 days", found=str(life), remedy="choose --hours")
    token, made = secrets.token_urlsafe(TOKEN_BYTES), now()
    with database.change() as connection:
        found = _site(connection, site)
        if purpose == "rotate" and found is None:
            raise _unknown(connection, site)
        if not _may(purpose, found):
            assert found is not None
            raise UserError(
                "a revoked hospital has no keys to replace"
                if purpose == "rotate"
                else "a hospital of this name is enrolled already",
                found=f"{site}: {found.state}",
                remedy="let it come back with new keys: clinimeta coordinator invite"
                if purpose == "rotate"
                else "rotate its keys, or choose another name",
            )
        connection.execute(
            invitations.insert().values(
                token=_hash(token),
                site=site,
                purpose=purpose,
                automatic=automatic,
                made_at=made.isoformat(),
                expires_at=(made + life).isoformat(),
            )
        )
        record(connection, who, "invited", site, f"{purpose}, until {(made + life).isoformat()}")
    return token


def enrol(database: Database, token: str, keys: Keys, software: str) -> Site:
    """Take a hospital's public keys, against a token.

    Raises:
        UserError: the token is unknown, used or expired (which of these it does not say), or a key is taken.
    """
    refused = UserError(
        "the token is not valid",
        expected="one that was not used before and has not expired",
        remedy="ask the coordinator's operator for a new one",
    )
    with database.change() as connection:
        invitation = connection.execute(
            sa.select(invitations).where(invitations.c.token == _hash(token))
        ).one_or_none()
        if invitation is None or invitation.expires_at < now().isoformat():
            raise refused
        before = _site(connection, invitation.site)
        if invitation.used_at:
            if before is not None and before.keys == keys and before.state != "revoked":
                return before  # our answer got lost
            raise refused
        taken = connection.execute(
            sa.select(sites.c.name).where(
                (sites.c.node_key == keys.node) | (sites.c.identity_key == keys.identity)
            )
        ).first()
        earlier = sa.select(checkpoints.c.site).where(checkpoints.c.key == keys.identity)
        if taken is not None or connection.execute(earlier).first() is not None:
            raise UserError("these keys are known already", remedy="make new ones: clinimeta site rotate")
        if not _may(invitation.purpose, before):
            raise refused  # approved or revoked after the token was made
        connection.execute(
            invitations.update()
            .where(invitations.c.token == invitation.token)
            .values(used_at=now().isoformat())
        )
        values = {
            "state": "approved" if invitation.automatic else "waiting",
            "node_key": keys.node,
            "identity_key": keys.identity,
            "software": "".join(letter for letter in software if letter.isprintable())[:200],
            "enrolled_at": now().isoformat(),
            "node_id": None,
            "decided_at": now().isoformat() if invitation.automatic else None,
        }
        if before is not None:
            connection.execute(sites.update().where(sites.c.name == invitation.site).values(**values))
        else:
            connection.execute(sites.insert().values(name=invitation.site, **values))
        record(connection, invitation.site, "enrolled", invitation.site, invitation.purpose)
        if invitation.automatic:
            record(connection, "the invitation", "approved", invitation.site)
        found = _site(connection, invitation.site)
    assert found is not None
    return found


def approve(database: Database, site: str, who: By) -> None:
    """Let a hospital that waits take part.

    Raises:
        UserError: no such hospital waits.
    """
    with database.change() as connection:
        found = _site(connection, site)
        if found is None:
            raise _unknown(connection, site)
        if found.state != "waiting":
            raise UserError("this hospital does not wait for an approval", found=f"{site}: {found.state}")
        connection.execute(
            sites.update().where(sites.c.name == site).values(state="approved", decided_at=now().isoformat())
        )
        record(connection, who, "approved", site)


def revoke(database: Database, site: str, who: By, reason: str = "") -> None:
    """Let a hospital take part no longer; its keys are refused from now on.

    Raises:
        UserError: no such hospital, or it is revoked already.
    """
    with database.change() as connection:
        found = _site(connection, site)
        if found is None:
            raise _unknown(connection, site)
        if found.state == "revoked":
            raise UserError("this hospital is revoked already", found=site)
        connection.execute(
            sites.update().where(sites.c.name == site).values(state="revoked", decided_at=now().isoformat())
        )
        record(connection, who, "revoked", site, reason)


def known(database: Database, *states: str) -> list[Site]:
    """The hospitals in these states (all, where none is named), by name."""
    query = sa.select(sites).order_by(sites.c.name)
    if states:
        query = query.where(sites.c.state.in_(states))
    return [_read(row) for row in database.rows(query)]


def find(database: Database, site: str) -> Site:
    """The hospital of this name.

    Raises:
        UserError: there is none; names the nearest.
    """
    with database.engine.connect() as connection:
        found = _site(connection, site)
        if found is None:
            raise _unknown(connection, site)
    return found


def set_node(database: Database, site: str, node_id: int | None) -> None:
    """Keep which node of Flower a hospital is."""
    with database.change() as connection:
        value = None if node_id is None else str(node_id)
        connection.execute(sites.update().where(sites.c.name == site).values(node_id=value))


def record(connection: sa.Connection, who: By, what: str, about: str, detail: str = "") -> None:
    """One more event; the one place that writes any. Call it within `Database.change`.

    A name alone is a hospital's where it is what the event is about, and an operator's else; what a token has
    allowed in advance is done by the invitation.
    """
    if isinstance(who, str):
        role = {about: "hospital", "the invitation": "invitation"}.get(who, "operator")
        who = Actor(who, role)
    event = {"at": now().isoformat(), "who": who.name, "what": what, "about": about, "detail": detail}
    audit.append(connection, {**event, "role": who.role, "reason": who.reason})


def _may(purpose: str, found: Site | None) -> bool:
    """Whether a token of this purpose fits how the hospital stands; a revoked one is invited anew."""
    revoked = found is not None and found.state == "revoked"
    return found is not None and not revoked if purpose == "rotate" else found is None or revoked


def _site(connection: sa.Connection, name: str) -> Site | None:
    row = connection.execute(sa.select(sites).where(sites.c.name == name)).mappings().one_or_none()
    return None if row is None else _read(dict(row))


def _read(row: dict[str, object]) -> Site:
    return Site(
        str(row["name"]),
        str(row["state"]),
        Keys(bytes(row["node_key"]), bytes(row["identity_key"])),  # type: ignore[call-overload]
        None if row["node_id"] is None else int(str(row["node_id"])),
        str(row["software"]),
        str(row["enrolled_at"]),
        None if row["decided_at"] is None else str(row["decided_at"]),
    )


def _unknown(connection: sa.Connection, site: str) -> UserError:
    names = [str(name) for (name,) in connection.execute(sa.select(sites.c.name))]
    return UserError(
        "no hospital of this name is enrolled",
        found=repr(site),
        expected=nearest(site, names) if names else "none is enrolled yet",
        remedy="clinimeta coordinator list",
    )


def _hash(token: str) -> bytes:
    return hashlib.sha256(b"clinimeta invitation 1\0" + token.encode()).digest()
