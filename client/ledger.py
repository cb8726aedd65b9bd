"""The outbound ledger: a record of all that leaves the hospital, written before it leaves (run by the site).

An SQLite file in which each record holds the hash of the one before it and is signed by the hospital's key;
some are counter-signed by the coordinator (`common.receipts`). `ledger_check` verifies it, offline.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clinimeta.common.errors import LedgerFileError
from clinimeta.common.private_files import require_private
from clinimeta.common.receipts import Checkpoint, checkpoint, genesis, is_receipt
from clinimeta.common.secagg.identity import Identity

_APPLICATION = 0x434D4C31  # "CML1", in the file's header
_HASH = b"clinimeta record 1\0"
_TABLES = """
CREATE TABLE records (
  number INTEGER PRIMARY KEY, previous BLOB NOT NULL, content TEXT NOT NULL, hash BLOB NOT NULL,
  signature BLOB NOT NULL
) STRICT;
CREATE TABLE receipts (number INTEGER PRIMARY KEY, hash BLOB NOT NULL, signature BLOB NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """One tensor that leaves: what it is called, its shape, its L2 norm (None: not of real numbers)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    norm: float | None
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost each patient: epsilon of the study so far, at this delta. None: no promise."""

    epsilon: float
    delta: float
    noise_multiplier: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What leaves, to whom, under which study and policy, at what cost. `numbers` are all its small fields.

    `outcome` is "sent", or the code of a refusal. `bytes` is all that Flower is given to send.
    """

    at: str
    kind: str
    to: str
    outcome: str
    run: str
    round: int | None
    study: str
    arm: str
    plan: str
    policy: str
    tensors: tuple[Sent, ...]
    numbers: Mapping[str, Any]
    cost: Cost | None
    bytes: int

    def canonical(self) -> str:
        """Sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def parse(text: str) -> "Entry":
        """The inverse.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        values = json.loads(text)
        tensors = tuple(Sent(**{**one, "shape": tuple(one["shape"])}) for one in values.pop("tensors"))
        cost = values.pop("cost")
        return Entry(**values, tensors=tensors, cost=None if cost is None else Cost(**cost))


@dataclass(frozen=True, slots=True)
class Record:
    """An entry in its place in the chain."""

    number: int
    previous: bytes
    content: str
    hash: bytes
    signature: bytes

    @property
    def entry(self) -> Entry:
        """What it says."""
        return Entry.parse(self.content)


def hash_of(number: int, previous: bytes, content: str) -> bytes:
    """A record's hash: over its number, the hash before it, and its content."""
    return hashlib.sha256(_HASH + number.to_bytes(8, "big") + previous + content.encode()).digest()


@dataclass(frozen=True, slots=True)
class Ledger:
    """The hospital's ledger file, made where it is missing; any number of processes may use it at once."""

    path: Path
    identity: Identity = field(repr=False)

    def __post_init__(self) -> None:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        require_private(self.path, 0o600)
        with self._open() as database, database:
            application = database.execute("PRAGMA application_id").fetchone()[0]
            if application == 0 and not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                database.executescript(f"PRAGMA application_id={_APPLICATION};{_TABLES}")
            elif application != _APPLICATION:
                raise LedgerFileError(
                    "this is not a ledger",
                    where=str(self.path),
                    expected="a file that clinimeta made",
                    remedy="check the path; a ledger that is lost is restored from a backup",
                )

    def append(self, entry: Entry) -> Checkpoint:
        """One more record, on the disk before this returns.

        Raises:
            LedgerFileError: it could not be written: then nothing may leave.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            last = database.execute(
                "SELECT number, hash FROM records ORDER BY number DESC LIMIT 1"
            ).fetchone()
            number, previous = (last[0] + 1, last[1]) if last else (1, genesis(self.identity.public))
            content = entry.canonical()
            made = checkpoint(number, hash_of(number, previous, content), self.identity)
            values = (number, previous, content, made.hash, made.signature)
            database.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", values)
            database.execute("COMMIT")
        return made

    def receive(self, of: Checkpoint, signature: bytes, coordinator_key: bytes) -> bool:
        """Keep a receipt; False where it is not the coordinator's, or not for a record of this ledger.

        Raises:
            LedgerFileError: it could not be written.
        """
        own = self.identity.public
        if not of.is_of(own) or not is_receipt(signature, of, own, coordinator_key):
            return False
        with self._open() as database:
            row = database.execute("SELECT hash FROM records WHERE number = ?", (of.number,)).fetchone()
            if row is None or row[0] != of.hash:
                return False
            database.execute(
                "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?)", (of.number, of.hash, signature)
            )
        return True

    def records(self, *, last: int | None = None) -> Sequence[Record]:
        """All records, or the last few, the oldest first.

        Raises:
            LedgerFileError: the file cannot be read.
        """
        with self._open() as database:
            rows = database.execute(
                "SELECT number, previous, content, hash, signature FROM records ORDER BY number DESC LIMIT ?",
                (-1 if last is None else last,),
            ).fetchall()
        return [Record(*row) for row in reversed(rows)]

    def answers_on(self, day: str) -> int:
        """How many answers with tensors or numbers made from the table left on a day (ISO 8601, UTC)."""
        with self._open() as database:
            found = database.execute(
                "SELECT count(*) FROM records WHERE json_extract(content, '$.at') LIKE ? AND "
                "json_extract(content, '$.outcome') = 'sent' AND "
                "json_extract(content, '$.kind') IN ('MetaGradient', 'Quantised', 'Calibration', 'masked')",
                (f"{day}%",),
            ).fetchone()
        return int(found[0])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None, timeout=30)) as database:
                for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                    database.execute(f"PRAGMA {pragma}")
                yield database
        except sqlite3.Error as error:
            full = "full" in str(error) or "disk I/O" in str(error)
            raise LedgerFileError(
                "the ledger cannot be written or read, so nothing leaves",
                where=str(self.path),
                found="no room on the disk" if full else type(error).__name__,
                remedy="make room" if full else "check the disk; restore the file from a backup",
            ) from None
