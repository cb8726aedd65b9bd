"""What people at the site have decided about plans: a folder that only the site can write (run by the site).

A plan is approved as a whole, by the SHA-256 of its canonical bytes. An order for a plan that nobody has seen
is refused, and its plan waits in `pending/` until a person looks at it. A decision moves its file to
`decided/`, with who decided when, and why; a file holds all that happened to its plan, so that a decision
and its record are one write. Folders are 0700, files 0600, whole or not there, and on the disk when a
call returns.
"""

import fcntl
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import AwareDatetime

from clinimeta.common.errors import ApprovalError, StudyError
from clinimeta.common.files import write_atomically
from clinimeta.common.plan import Plan
from clinimeta.common.private_files import make_private_folder, require_private
from clinimeta.common.settings import Settings, parse

MOST_PENDING = 50
"""Plans that wait at most. A further one is refused like them and not kept: a flood hides nothing."""
MOST_BY_POLICY = 200
"""Plans that a policy approves at most, ever; the next wait for a person, since so many are no study."""
AUTO = "auto"
"""Who approves where the site's policy does."""
SHORTEST = 8
_NOT_PRIVATE = "others could change what this site has approved"
_NAME = re.compile(r"([0-9a-f]{64})\.json")


class Event(Settings):
    """What happened to a plan: it was first seen, approved, or withdrawn (also: turned down)."""

    what: Literal["seen", "approved", "withdrawn"]
    at: AwareDatetime
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Dossier:
    """A plan, and what happened to it, the oldest first."""

    plan: Plan
    events: tuple[Event, ...]

    @property
    def digest(self) -> str:
        """The plan's."""
        return self.plan.digest

    @property
    def approval(self) -> Event | None:
        """The approval that stands, if any."""
        return self.events[-1] if self.events[-1].what == "approved" else None

    @property
    def approved_on(self) -> date:
        """The day (UTC) of the approval that stands."""
        assert self.approval is not None
        return self.approval.at.astimezone(UTC).date()


@dataclass(frozen=True, slots=True)
class Decisions:
    """What stands: the approved plans by digest, and the digests of those turned down or withdrawn."""

    approved: Mapping[str, Dossier] = field(default_factory=dict)
    withdrawn: frozenset[str] = frozenset()


class _File(Settings):
    format: Literal[1]
    plan: dict[str, Any]
    events: Annotated[tuple[Event, ...], MinLen(1)]


@dataclass(frozen=True, slots=True)
class Approvals:
    """The folder, made where it is missing; any number of processes may use it at once.

    Every method raises `ApprovalError` where a file is damaged, `UserError` where others could write here.

    Raises:
        UserError: the folder belongs to somebody else, or others may enter it.
    """

    folder: Path
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        for folder in (self.folder, self._pending, self._decided):
            make_private_folder(folder, _NOT_PRIVATE)

    def keep(self, plan: Plan, most: int | None = MOST_PENDING) -> bool:
        """Let a plan wait for a person; False where it is known already, or `most` are waiting.

        Somebody at the site who brings a plan gives None, so that no flood from outside keeps it out.
        """
        if self.knows(plan):
            return False
        with self._alone():
            if self.knows(plan) or (most is not None and len(_names(self._pending)) >= most):
                return False
            self._write(self._pending, Dossier(plan, (self._event("seen"),)))
        return True

    def knows(self, plan: Plan) -> bool:
        """Whether a plan waits, or was decided about."""
        name = f"{plan.digest}.json"
        return (self._pending / name).exists() or (self._decided / name).exists()

    def pending(self) -> tuple[Dossier, ...]:
        """The plans that wait for a decision, the first seen first."""
        decided = {*_names(self._decided)}
        found = (self._read(self._pending, name) for name in _names(self._pending) if name not in decided)
        return tuple(sorted(found, key=lambda dossier: dossier.events[0].at))

    def approved(self) -> tuple[Dossier, ...]:
        """The plans whose approval stands, the last approved last."""
        found = [dossier for dossier in self._all_decided() if dossier.approval]
        return tuple(sorted(found, key=lambda dossier: dossier.events[-1].at))

    def decisions(self) -> Decisions:
        """What stands now."""
        found = {dossier.digest: dossier for dossier in self._all_decided()}
        approved = {digest: dossier for digest, dossier in found.items() if dossier.approval}
        return Decisions(approved, frozenset(found.keys() - approved.keys()))

    def history(self) -> tuple[tuple[Event, Dossier], ...]:
        """All that happened, the oldest first, and to which plan."""
        known = (*self.pending(), *self._all_decided())
        found = [(event, dossier) for dossier in known for event in dossier.events]
        return tuple(sorted(found, key=lambda pair: pair[0].at))

    def find(self, which: str) -> Dossier:
        """The plan with this digest, or whose digest alone begins so (8 or more hexadecimal digits).

        Raises:
            ApprovalError: there is none, or more than one.
        """
        if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST},64}}", which):
            raise ApprovalError(
                "this is not a plan's digest",
                found=repr(which[:80]),
                expected=f"the 64 hexadecimal digits, or the first {SHORTEST} or more of them",
                remedy="copy it from the list of plans",
            )
        known = dict.fromkeys(_names(self._pending), self._pending)
        known |= dict.fromkeys(_names(self._decided), self._decided)
        fitting = [name for name in known if name.startswith(which)]
        if len(fitting) != 1:
            raise ApprovalError(
                f"{len(fitting) or 'no'} plans have this digest",
                found=which,
                expected="exactly one",
                remedy="give more of its digits" if fitting else "copy the digest from the list of plans",
            )
        return self._read(known[fitting[0]], fitting[0])

    def approve(self, which: str, by: str, reason: str = "") -> Dossier:
        """Let the site answer this plan from now on; approved again, the approval lasts anew.

        Raises:
            ApprovalError: as `find`, or nobody is named.
        """
        with self._alone():
            return self._decide(self.find(which), "approved", _person(by), reason)

    def withdraw(self, which: str, by: str, reason: str = "") -> Dossier:
        """Answer this plan no longer, or turn it down while it waits. No policy approves it again.

        Raises:
            ApprovalError: as `find`, nobody is named, or it was withdrawn before.
        """
        with self._alone():
            dossier = self.find(which)
            if dossier.events[-1].what == "withdrawn":
                raise ApprovalError("this plan was withdrawn or turned down before", found=dossier.digest)
            return self._decide(dossier, "withdrawn", _person(by), reason)

    def approve_by_policy(self, plan: Plan) -> str:
        """Record that the site's policy has approved a plan; else why it may not, in a sentence."""
        with self._alone():
            name = f"{plan.digest}.json"
            folder = next((f for f in (self._decided, self._pending) if (f / name).exists()), None)
            dossier = Dossier(plan, (self._event("seen"),)) if folder is None else self._read(folder, name)
            if dossier.events[-1].what == "withdrawn":
                return "the site has withdrawn its approval of this plan"
            known = [one for one in self._all_decided() if one.digest != plan.digest]
            if sum(any(event.by == AUTO for event in one.events) for one in known) >= MOST_BY_POLICY:
                return f"the site's policy has approved {MOST_BY_POLICY} plans; a person decides about others"
            self._decide(dossier, "approved", AUTO, "the site's policy approves what it allows")
        return ""

    def last_approved(self, plan: Plan) -> Plan | None:
        """What a person compares a plan with: the last approved one of its study and arm, else of its study,
        else of all.
        """

        def nearness(other: Dossier) -> tuple[bool, bool, datetime]:
            same = other.plan.study == plan.study
            return same, same and other.plan.arm == plan.arm, other.events[-1].at

        others = [dossier for dossier in self.approved() if dossier.digest != plan.digest]
        return max(others, key=nearness).plan if others else None

    @property
    def _pending(self) -> Path:
        return self.folder / "pending"

    @property
    def _decided(self) -> Path:
        return self.folder / "decided"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _event(self, what: Literal["seen", "approved", "withdrawn"], by: str = "", reason: str = "") -> Event:
        return Event(what=what, at=self.clock(), by=by, reason=reason.strip())

    def _decide(
        self, dossier: Dossier, what: Literal["approved", "withdrawn"], by: str, reason: str
    ) -> Dossier:
        """Write the decision, then forget that the plan waits; killed in between, the decision stands."""
        decided = Dossier(dossier.plan, (*dossier.events, self._event(what, by, reason)))
        self._write(self._decided, decided)
        (self._pending / f"{dossier.digest}.json").unlink(missing_ok=True)
        return decided

    def _write(self, folder: Path, dossier: Dossier) -> None:
        events = [event.model_dump(mode="json") for event in dossier.events]
        values = {"format": 1, "plan": json.loads(dossier.plan.canonical()), "events": events}
        data = (json.dumps(values, indent=1) + "\n").encode()
        write_atomically(folder / f"{dossier.digest}.json", data, 0o600)

    def _all_decided(self) -> list[Dossier]:
        return [self._read(self._decided, name) for name in _names(self._decided)]

    def _read(self, folder: Path, name: str) -> Dossier:
        for path in (self.folder, folder):
            require_private(path, 0o700, _NOT_PRIVATE)
        require_private(folder / name, 0o600, _NOT_PRIVATE)
        try:
            return _parse(name, (folder / name).read_bytes())
        except (StudyError, ValueError, TypeError, RecursionError):
            raise ApprovalError(
                "the record of a plan is damaged",
                where=str(folder / name),
                remedy="restore it from a backup, or remove it and decide about the plan again",
            ) from None


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))


@functools.lru_cache(maxsize=256)
def _parse(name: str, data: bytes) -> Dossier:
    """A file's content; the plan must have the digest that the file is named by."""
    read = parse(_File, json.loads(data), name)
    plan = Plan.from_bytes(json.dumps(read.plan, sort_keys=True, separators=(",", ":")).encode())
    if f"{plan.digest}.json" != name:
        raise ValueError("another plan than the file's name says")
    return Dossier(plan, read.events)


def _person(by: str) -> str:
    """Who decides, as it is recorded.

    Raises:
        ApprovalError: nobody, or who is not a person.
    """
    name = by.strip()
    if not name or name == AUTO or not name.isprintable() or len(name) > 200:
        raise ApprovalError(
            "a decision needs the name of who decides",
            found=repr(name[:80]),
            expected=f"a person's name on one line, not '{AUTO}'",
            remedy="give your name",
        )
    return name
