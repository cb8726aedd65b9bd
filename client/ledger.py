"""The outbound ledger: a record of all that leaves the hospital, written before it leaves (run by the site).

An SQLite file in which each record holds the hash of the one before it and is signed by the hospital's key;
some are counter-signed by the coordinator (`common.receipts`). `ledger_check` verifies it, offline. One file,
without a write-ahead log beside it, so that a copy is whole and a reader leaves nothing behind.
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

from pydantic import TypeAdapter

from clinimeta.common.errors import LedgerFileError
from clinimeta.common.private_files import require_private
from clinimeta.common.receipts import Checkpoint, checkpoint, genesis, is_receipt
from clinimeta.common.secagg.identity import Identity

_APPLICATION = 0x434D4C31  # "CML1", in the file's header
_HASH = b"clinimeta record 1\0"
WAIT_S = 30.0
"""How long one process waits for another's append."""
_TABLES = (
    "CREATE TABLE records (number INTEGER PRIMARY KEY, previous BLOB NOT NULL, content TEXT NOT NULL, "
    "hash BLOB NOT NULL, signature BLOB NOT NULL) STRICT",
    "CREATE TABLE receipts (number INTEGER PRIMARY KEY, hash BLOB NOT NULL, signature BLOB NOT NULL) STRICT",
)
SENT = "sent"
READS = ("MetaGradient", "Quantised", "Calibration", "masked")
"""Kinds of answers that are made from the table."""


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
        """The inverse; accepts nothing but what `canonical` produces.

        Raises:
            ValueError: it is none, or in another form.
        """
        entry = _ENTRY.validate_json(text, strict=True)
        if entry.canonical() != text:
            raise ValueError("not in the one canonical form")
        return entry


_ENTRY = TypeAdapter(Entry)


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
        """What it says.

        Raises:
            ValueError: it cannot be read.
        """
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
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise LedgerFileError(
                "the ledger cannot be opened, so nothing leaves",
                where=str(self.path),
                found=error.strerror or type(error).__name__,
                expected="a file that its owner may write, no link",
                remedy="check the path and who owns it",
            ) from None
        require_private(self.path, 0o600)
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            application = database.execute("PRAGMA application_id").fetchone()[0]
            if application == 0 and not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                for statement in (*_TABLES, f"PRAGMA application_id={_APPLICATION}"):
                    database.execute(statement)
            elif application != _APPLICATION:
                raise LedgerFileError(
                    "this is not a ledger",
                    where=str(self.path),
                    expected="a file that clinimeta made",
                    remedy="check the path; a ledger that is lost is restored from a backup",
                )
            database.execute("COMMIT")

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
        """How many answers with tensors or numbers made from the table left on a day (ISO 8601, UTC).

        Raises:
            LedgerFileError: the file cannot be read.
        """
        with self._open() as database:
            found = database.execute(
                "SELECT count(*) FROM records WHERE json_extract(content, '$.at') LIKE ? AND "
                "json_extract(content, '$.outcome') = ? AND json_extract(content, '$.kind') IN (?, ?, ?, ?)",
                (f"{day}%", SENT, *READS),
            ).fetchone()
        return int(found[0])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        where = f"{self.path.absolute().as_uri()}?mode=rw"  # a file that is gone is an error, not a new one
        try:
            with closing(sqlite3.connect(where, uri=True, isolation_level=None, timeout=WAIT_S)) as database:
                # EXTRA is FULL, and the folder is synced too when the journal goes: a power cut cannot undo.
                database.execute("PRAGMA synchronous=EXTRA")
                yield database
        except sqlite3.Error as error:
            found, remedy = _cause(error)
            raise LedgerFileError(
                "the ledger cannot be written or read, so nothing leaves",
                where=str(self.path),
                found=found,
                remedy=remedy,
            ) from None


def _cause(error: sqlite3.Error) -> tuple[str, str]:
    """What SQLite found, and what to do about it."""
    if "full" in str(error):
        return "no room on the disk", "make room"
    if "locked" in str(error):
        return f"another program has held the file for {WAIT_S:g} s", "end that program"
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return name, "check the disk; restore the file from a backup"
