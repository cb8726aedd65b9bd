"""Accounts of a console: who may sign in, with what; in a database of its own (`console.sqlite`, 0600).

There is no default password. The first account, and each later one, is made by a link that serves once.
Of links, sessions and tokens only hashes are kept.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from clinimeta.common.errors import UserError
from clinimeta.common.private_files import require_private
from clinimeta.common.web import account_tables as tables
from clinimeta.common.web import patience
from clinimeta.common.web.passwords import NOBODYS, fits, hashed, require_good
from clinimeta.common.web.roles import Role, Who

IDLE, LONGEST = timedelta(minutes=30), timedelta(hours=12)
"""How long a session lasts without a request, and at all."""
LINK_LIFE = timedelta(hours=24)
VOUCHED = "vouched for by "  # stands in a password's place where a provider knows the person


@dataclass(frozen=True, slots=True)
class Account:
    """An account, as lists show it."""

    name: str
    role: Role
    site: str
    active: bool
    made_at: str


@dataclass(frozen=True, slots=True)
class Session:
    """A session: whose, and what a changing request must repeat."""

    who: Who
    csrf: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A token for programs, as its owner's list shows it."""

    label: str
    expires_at: str


def utc_now() -> datetime:
    """The time (UTC)."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Accounts:
    """The accounts; any number of processes may use the file at once."""

    engine: sa.Engine
    now: Callable[[], datetime] = utc_now

    @staticmethod
    def open(path: Path, now: Callable[[], datetime] = utc_now) -> "Accounts":
        """The accounts in a file, made where it is missing.

        Raises:
            UserError: others may read it, or it is no database.
        """
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        require_private(path, 0o600)
        engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
        event.listen(engine, "connect", tables.prepare)
        try:
            tables.metadata.create_all(engine)
        except sa.exc.DatabaseError:
            raise UserError(
                "the accounts cannot be used",
                where=str(path),
                remedy="restore it from a backup, or move it away and begin with a new first account",
            ) from None
        return Accounts(engine, now)

    # Accounts

    def known(self) -> list[Account]:
        """All accounts, by name."""
        return [
            _account(row) for row in self._rows(sa.select(tables.accounts).order_by(tables.accounts.c.name))
        ]

    def link(self, role: Role, site: str = "", name: str = "", life: timedelta = LINK_LIFE) -> str:
        """A link's secret: whoever opens it makes an account of this role, or sets the password of `name`.

        Raises:
            UserError: a viewer without a hospital, or another role with one.
        """
        if (role == Role.VIEWER) != bool(site):
            raise UserError("a viewer sees one hospital, and other roles are not bound to one", found=site)
        secret = secrets.token_urlsafe(32)
        with self._change() as connection:
            connection.execute(
                tables.links.insert().values(
                    link=_hash("link", secret),
                    role=role.value,
                    site=site,
                    name=name,
                    expires_at=(self.now() + life).isoformat(),
                )
            )
        return secret

    def first_link(self) -> str | None:
        """A link for the first operator; None where there is one who can sign in."""
        operators = (one for one in self.known() if one.role == Role.OPERATOR and one.active)
        return self.link(Role.OPERATOR, life=timedelta(hours=1)) if next(operators, None) is None else None

    def linked(self, secret: str) -> tuple[Role, str] | None:
        """What an open link makes: a role, and the name if it is known already; None where it is not open."""
        with self.engine.connect() as connection:
            row = connection.execute(self._open_link(secret)).one_or_none()
        return None if row is None else (Role(row.role), row.name)

    def use(self, secret: str, name: str, password: str) -> Account:
        """Make the account (or set the password) that a link is for; the link is used up.

        Raises:
            UserError: the link is not open, the name is taken or unusable, or the password is poor.
        """
        with self._change() as connection:
            row = connection.execute(self._open_link(secret)).one_or_none()
            if row is None:
                raise UserError(
                    "this link is not valid",
                    expected="one that was not used and has not expired",
                    remedy="ask an operator for a new one",
                )
            name = row.name or name
            if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
                raise UserError("this is not a name", expected="1 to 100 printable characters")
            require_good(password, name)
            known = connection.execute(
                sa.select(tables.accounts).where(tables.accounts.c.name == name)
            ).one_or_none()
            if known is not None and not row.name:
                raise UserError("an account has this name already", remedy="choose another")
            values = {"password": hashed(password), "role": row.role, "site": row.site, "active": True}
            if known is None:
                made = self.now().isoformat()
                connection.execute(tables.accounts.insert().values(name=name, made_at=made, **values))
            else:
                connection.execute(
                    tables.accounts.update().where(tables.accounts.c.name == name).values(**values)
                )
                self._end_all(connection, name)
            connection.execute(tables.links.delete().where(tables.links.c.link == row.link))
        return self.find(name)

    def find(self, name: str) -> Account:
        """The account of this name.

        Raises:
            UserError: there is none.
        """
        if not (rows := self._rows(sa.select(tables.accounts).where(tables.accounts.c.name == name))):
            raise UserError("there is no such account", found=repr(name))
        return _account(rows[0])

    def change(
        self, name: str, *, role: Role | None = None, site: str | None = None, active: bool | None = None
    ) -> None:
        """Another role, or no longer (or again) active; all its sessions and tokens end.

        Raises:
            UserError: there is no such account, a role does not fit, or nobody could operate any more.
        """
        before = self.find(name)
        after = Who(name, role or before.role, before.site if site is None else site)
        if (after.role == Role.VIEWER) != bool(after.site):
            raise UserError(
                "a viewer sees one hospital, and other roles are not bound to one", found=after.site
            )
        stays = before.active if active is None else active
        with self._change() as connection:
            connection.execute(
                tables.accounts.update()
                .where(tables.accounts.c.name == name)
                .values(role=after.role.value, site=after.site, active=stays)
            )
            self._end_all(connection, name)
            operators = sa.select(sa.func.count()).where(
                tables.accounts.c.role == Role.OPERATOR.value, tables.accounts.c.active
            )
            if not connection.execute(operators).scalar_one():
                raise UserError(
                    "nobody could operate any more", found=name, remedy="make another operator first"
                )

    def set_password(self, name: str, old: str, new: str) -> None:
        """Another password; all sessions end.

        Raises:
            UserError: the old one is wrong, or the new one is poor.
        """
        if self.enter(name, old, "a change of password") is None:
            raise UserError("the old password is wrong")
        require_good(new, name)
        with self._change() as connection:
            values = {"password": hashed(new)}
            connection.execute(
                tables.accounts.update().where(tables.accounts.c.name == name).values(**values)
            )
            self._end_all(connection, name)

    # Signing in

    def enter(self, name: str, password: str, address: str) -> Who | None:
        """Who that is, if the password fits; None (as slowly) if not.

        Raises:
            UserError: too many wrong passwords for the name, or from the address; how long to wait.
        """
        about = (f"name {_hash('try', name).hex()}", f"address {address[:200]}")
        with self.engine.connect() as connection:
            patience.require(connection, about, self.now())
        rows = self._rows(sa.select(tables.accounts).where(tables.accounts.c.name == name))
        row = rows[0] if rows else None
        known = row is not None and not row["password"].startswith(VOUCHED)
        right = fits(password, row["password"] if row and known else NOBODYS)
        if row is None or not known or not right or not row["active"]:
            with self._change() as connection:
                patience.count(connection, about, self.now())
            return None
        with self._change() as connection:
            patience.forget(connection, about[0])
        return Who(row["name"], Role(row["role"]), row["site"])

    def begin(self, who: Who) -> str:
        """A new session's secret, for the cookie."""
        secret, now = secrets.token_urlsafe(32), self.now().isoformat()
        oldest = (self.now() - LONGEST).isoformat()
        with self._change() as connection:
            connection.execute(tables.sessions.delete().where(tables.sessions.c.made_at < oldest))
            connection.execute(
                tables.sessions.insert().values(
                    session=_hash("session", secret),
                    name=who.name,
                    csrf=secrets.token_urlsafe(32),
                    made_at=now,
                    seen_at=now,
                )
            )
        return secret

    def session(self, secret: str) -> Session | None:
        """The session of this secret; None where it is none, or over."""
        now, key = self.now(), _hash("session", secret)
        query = (
            sa.select(
                tables.sessions, tables.accounts.c.role, tables.accounts.c.site, tables.accounts.c.active
            )
            .join(tables.accounts, tables.accounts.c.name == tables.sessions.c.name)
            .where(tables.sessions.c.session == key)
        )
        rows = self._rows(query)
        if not rows or not rows[0]["active"]:
            return None
        row = rows[0]
        seen = datetime.fromisoformat(row["seen_at"])
        if now - seen > IDLE or now - datetime.fromisoformat(row["made_at"]) > LONGEST:
            self.end(secret)
            return None
        if now - seen > IDLE / 10:  # not a write a request
            with self._change() as connection:
                connection.execute(
                    tables.sessions.update()
                    .where(tables.sessions.c.session == key)
                    .values(seen_at=now.isoformat())
                )
        return Session(Who(row["name"], Role(row["role"]), row["site"]), row["csrf"])

    def end(self, secret: str) -> None:
        """Sign out."""
        self._delete(tables.sessions, tables.sessions.c.session == _hash("session", secret))

    def from_provider(self, issuer: str, name: str, role: Role) -> Who:
        """Somebody for whom an organisation's provider vouches, with an account without a password.

        Raises:
            UserError: the name is unusable, or that of an account with a password, or of another provider's.
        """
        if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
            raise UserError("this is not a name", expected="1 to 100 printable characters")
        mark = f"{VOUCHED}{issuer}"
        rows = self._rows(sa.select(tables.accounts).where(tables.accounts.c.name == name))
        if rows and rows[0]["password"] != mark:
            raise UserError("another account has this name", found=name, remedy="ask an operator")
        if rows and not rows[0]["active"]:
            raise UserError("this account is disabled", found=name, remedy="ask an operator")
        with self._change() as connection:
            if not rows:
                made = self.now().isoformat()
                values = {"name": name, "site": "", "password": mark, "active": True}
                connection.execute(tables.accounts.insert().values(**values, role=role.value, made_at=made))
            elif rows[0]["role"] != role.value:
                connection.execute(
                    tables.accounts.update().where(tables.accounts.c.name == name).values(role=role.value)
                )
                self._end_all(connection, name)
        return Who(name, role)

    # Programs

    def new_token(self, name: str, label: str, life: timedelta) -> str:
        """A token for programs, which may do what the account may; shown once.

        Raises:
            UserError: it would live over a year.
        """
        if not timedelta(0) < life <= timedelta(days=366):
            raise UserError("a token lives a year at most", found=f"{life.days} days")
        secret = f"cm_{secrets.token_urlsafe(32)}"
        with self._change() as connection:
            connection.execute(
                tables.tokens.insert().values(
                    token=_hash("token", secret),
                    name=name,
                    label=label[:100],
                    expires_at=(self.now() + life).isoformat(),
                )
            )
        return secret

    def tokens(self, name: str) -> list[Token]:
        """Of an account."""
        rows = self._rows(
            sa.select(tables.tokens).where(tables.tokens.c.name == name).order_by(tables.tokens.c.expires_at)
        )
        return [Token(row["label"], row["expires_at"]) for row in rows]

    def end_tokens(self, name: str) -> None:
        """End all tokens of an account."""
        self._delete(tables.tokens, tables.tokens.c.name == name)

    def bearer(self, secret: str) -> Who | None:
        """Whose token that is."""
        query = (
            sa.select(tables.accounts, tables.tokens.c.expires_at)
            .join(tables.tokens, tables.accounts.c.name == tables.tokens.c.name)
            .where(tables.tokens.c.token == _hash("token", secret))
        )
        rows = self._rows(query)
        if not rows or not rows[0]["active"] or rows[0]["expires_at"] < self.now().isoformat():
            return None
        return Who(rows[0]["name"], Role(rows[0]["role"]), rows[0]["site"])

    def _open_link(self, secret: str) -> "sa.Select[Any]":
        return sa.select(tables.links).where(
            tables.links.c.link == _hash("link", secret), tables.links.c.expires_at > self.now().isoformat()
        )

    def _end_all(self, connection: sa.Connection, name: str) -> None:
        connection.execute(tables.sessions.delete().where(tables.sessions.c.name == name))
        connection.execute(tables.tokens.delete().where(tables.tokens.c.name == name))

    @contextmanager
    def _change(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def _delete(self, table: sa.Table, where: sa.ColumnElement[bool]) -> None:
        with self._change() as connection:
            connection.execute(table.delete().where(where))

    def _rows(self, query: "sa.Select[Any]") -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


def _account(row: dict[str, Any]) -> Account:
    return Account(row["name"], Role(row["role"]), row["site"], row["active"], row["made_at"])


def _hash(kind: str, secret: str) -> bytes:
    return hashlib.sha256(f"clinimeta console {kind}\0{secret}".encode(errors="replace")).digest()
