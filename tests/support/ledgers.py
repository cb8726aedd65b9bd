"""Ledgers for tests: entries, chains of records, receipts, and an attacker's hand on the file."""

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinimeta.client.ledger import Cost, Entry, Ledger, Record, Sent, hash_of
from clinimeta.common.receipts import Checkpoint, checkpoint, genesis, receipt
from clinimeta.common.secagg.identity import Identity

SITE, COORDINATOR = Identity("ulm", bytes([1]) * 32), Identity("hub", bytes([2]) * 32)
ATTACKER, OTHER_HUB = Identity("ulm", bytes([9]) * 32), Identity("other", bytes([3]) * 32)
LENGTH = 6

Receipts = dict[int, tuple[bytes, bytes]]


def entry(number: int, **changes: object) -> Entry:
    tensor = Sent("gradient.weight", "float32", (13, 1), 0.5, 52, "ab" * 32)
    made = Entry(
        at=f"2026-11-23T10:00:{number:02d}+00:00",
        kind="MetaGradient",
        to="hub (12345)",
        outcome="sent",
        run="run-1",
        round=number,
        study="sepsis",
        arm="maml",
        plan="cd" * 32,
        policy="ef" * 32,
        tensors=(tensor,),
        numbers={"weight": 4.0},
        cost=Cost(1.5, 1e-6, 3.0),
        bytes=1000 + number,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def chained(contents: Iterable[str], by: Identity = SITE, after: Sequence[Record] = ()) -> list[Record]:
    """Records with these contents, signed by this key, after those that are there."""
    records = list(after)
    previous = records[-1].hash if records else genesis(by.public)
    for number, content in enumerate(contents, start=len(records) + 1):
        made = checkpoint(number, hash_of(number, previous, content), by)
        records.append(Record(number, previous, content, made.hash, made.signature))
        previous = made.hash
    return records


def chain(length: int = LENGTH, **changes: object) -> list[Record]:
    return chained(entry(number, **changes).canonical() for number in range(1, length + 1))


def receipts_for(records: Sequence[Record], *numbers: int, by: Identity = COORDINATOR) -> Receipts:
    return {
        one.number: (one.hash, receipt(checkpoint(one.number, one.hash, SITE), SITE.public, by))
        for one in records
        if one.number in numbers
    }


def file_of(path: Path, length: int = LENGTH, *, witnessed: Iterable[int] = ()) -> Ledger:
    """A ledger's file with so many records, of which these have receipts in it."""
    ledger = Ledger(path, SITE)
    made = [ledger.append(entry(number)) for number in range(1, length + 1)]
    for number in witnessed:
        assert receive(ledger, made[number - 1])
    return ledger


def receive(ledger: Ledger, made: Checkpoint, by: Identity = COORDINATOR) -> bool:
    return ledger.receive(made, receipt(made, SITE.public, by), COORDINATOR.public)


def edit(path: Path, statement: str, *values: Any) -> None:
    """What somebody does to the file with SQLite."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement, values)


def without_types(path: Path) -> None:
    """The same tables, which now take values of any type, and any number twice."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for table in ("records", "receipts"):
            names = ", ".join(row[1] for row in database.execute(f"PRAGMA table_info({table})"))
            database.execute(f"CREATE TABLE loose ({names})")
            database.execute(f"INSERT INTO loose SELECT * FROM {table}")  # noqa: S608 (fixed names)
            database.execute(f"DROP TABLE {table}")
            database.execute(f"ALTER TABLE loose RENAME TO {table}")
