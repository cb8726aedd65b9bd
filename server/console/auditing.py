"""Audit: who did what when and why; search, verify the chain, export."""

from dataclasses import asdict, dataclass

from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen
from clinimeta.server import audit
from clinimeta.server.console.base import Console

SHOWN = 50
EXPORTED = 100_000


@dataclass(frozen=True, slots=True)
class Audit:
    """Events, the newest first. `older` is where the next page begins; `head` is what to keep elsewhere."""

    events: tuple[audit.Event, ...]
    search: str
    older: int | None
    head_number: int
    head_hash: str


@dataclass(frozen=True, slots=True)
class Verified:
    """Whether every event is as it was written; `broken` is the first that is not."""

    events: int
    broken: int | None
    head_hash: str


@dataclass(frozen=True, slots=True)
class Exported:
    """All events, the oldest first, with their hashes."""

    events: tuple[dict[str, str | int], ...]


def audit_screen(console: Console, _who: Who, search: str = "", before: int = audit.LAST) -> Audit:
    """A page of events."""
    with console.database.engine.connect() as connection:
        found = audit.audit(connection, search, before=before, limit=SHOWN + 1)
        number, head = audit.head(connection)
    older = found[SHOWN - 1].number if len(found) > SHOWN else None
    return Audit(found[:SHOWN], search, older, number, head)


def verify_audit(console: Console, _who: Who) -> Verified:
    """Hold the whole chain against itself."""
    broken = audit.verify_events(console.database)
    with console.database.engine.connect() as connection:
        number, head = audit.head(connection)
    return Verified(number, broken, head)


def export_audit(console: Console, _who: Who) -> Exported:
    """All events at once."""
    with console.database.engine.connect() as connection:
        found = audit.audit(connection, limit=EXPORTED)
    return Exported(tuple(asdict(one) for one in reversed(found)))


SCREENS = (
    Screen("/audit", May.AUDIT, "Audit", audit_screen, "audit.html", nav=True),
    Screen("/audit/verified", May.AUDIT, "Audit, verified", verify_audit, "audit_verified.html"),
    Screen("/audit/export", May.AUDIT, "Audit, exported", export_audit, "audit_export.html"),
)
