"""Verify a ledger, offline and without writing to it: is what is there unchanged, and is all of it there?"""

import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clinimeta.client.ledger import Entry, Record, hash_of
from clinimeta.common.errors import LedgerFileError
from clinimeta.common.receipts import Checkpoint, genesis, is_receipt

Receipts = Mapping[int, tuple[bytes, bytes]]
"""Number of a record -> its hash, and the coordinator's signature."""

MOST_GAPS = 1000
"""How many missing records are named at most, where nobody has counter-signed them."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a ledger came to.

    `broken` is the first record that is not as it was written, and `why`; None where all are. `missing` are
    numbers of records that are known to have been there and are not: the coordinator has counter-signed them,
    or a later record of the hospital's is there (of such gaps, the first `MOST_GAPS`). `witnessed` is the
    last counter-signed record before any broken one: those after it are the hospital's word alone.
    """

    records: int
    broken: int | None
    why: str
    witnessed: int
    missing: tuple[int, ...]
    unread_receipts: int

    @property
    def intact(self) -> bool:
        """Every record that is there is as it was written."""
        return self.broken is None

    @property
    def complete(self) -> bool:
        """Every record that is known to have been there is there."""
        return not self.missing and not self.unread_receipts


def verify(path: Path, site_key: bytes, coordinator_key: bytes, more: Receipts | None = None) -> Findings:
    """Verify a ledger file; `more` are receipts kept elsewhere, by the coordinator or in a backup.

    Raises:
        LedgerFileError: the file cannot be read at all.
    """
    records, receipts = read(path)
    return examine(records, receipts, site_key, coordinator_key, more)


def read(path: Path) -> tuple[list[Record], dict[int, tuple[bytes, bytes]]]:
    """What the file holds, unchecked; a value of another type than its column's is read as empty.

    Raises:
        LedgerFileError: there is no such file, or it is no ledger.
    """
    if not path.is_file():
        raise LedgerFileError(
            "there is no ledger",
            where=str(path),
            expected="the file that the hospital's daemon makes when it first starts",
            remedy="check the path; restore a ledger that is lost from a backup",
        )
    try:
        rows, signed = _rows_of(path)
    except (sqlite3.Error, OSError) as error:
        raise LedgerFileError(
            "the file cannot be read as a ledger",
            where=str(path),
            found=type(error).__name__,
            remedy="restore it from a backup, and keep this one as evidence",
        ) from None
    records = [
        Record(
            _int(number), _bytes(previous), content if isinstance(content, str) else "", *map(_bytes, rest)
        )
        for number, previous, content, *rest in rows
    ]
    return records, {_int(number): (_bytes(digest), _bytes(by)) for number, digest, by in signed}


def _rows_of(path: Path) -> tuple[list[Any], list[Any]]:
    journal = Path(f"{path}-journal")
    try:
        return _rows(path, "ro")
    except sqlite3.Error:
        if not journal.exists():
            raise
    with TemporaryDirectory() as folder:  # a crash left half a record, which SQLite undoes, here in a copy
        copy = Path(folder) / "ledger"
        with suppress(FileNotFoundError):  # the daemon has started again just now, and has undone it
            shutil.copyfile(journal, f"{copy}-journal")
        shutil.copyfile(path, copy)
        return _rows(copy, "rw")


def _rows(path: Path, mode: str) -> tuple[list[Any], list[Any]]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)) as database:
        database.text_factory = lambda data: data.decode(errors="replace")
        rows = database.execute("SELECT number, previous, content, hash, signature FROM records")
        by_number = sorted(rows.fetchall(), key=lambda row: _int(row[0]))
        return by_number, database.execute("SELECT number, hash, signature FROM receipts").fetchall()


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def examine(
    records: Sequence[Record],
    receipts: Receipts,
    site_key: bytes,
    coordinator_key: bytes,
    more: Receipts | None = None,
) -> Findings:
    """Hold every record against the one before it, its signature and the receipts."""
    given = [*receipts.items(), *(more or {}).items()]
    valid = {
        number: digest
        for number, (digest, signature) in given
        if 0 < number < 1 << 63
        and is_receipt(signature, Checkpoint(number, digest, bytes(64)), site_key, coordinator_key)
    }
    unread = sum(valid.get(number) != digest for number, (digest, _signature) in given)
    broken, why = None, ""
    previous = genesis(site_key)
    for place, record in enumerate(records, start=1):
        why = _wrong(record, place, previous, site_key, valid)
        if why:
            broken = place
            break
        previous = record.hash
    there = {record.number for record in records}
    sound = len(records) if broken is None else broken - 1
    return Findings(
        records=len(records),
        broken=broken,
        why=why,
        witnessed=max((number for number in valid if number <= sound), default=0),
        missing=tuple(sorted({*valid, *_gaps(records, site_key)} - there)),
        unread_receipts=unread,
    )


def _wrong(record: Record, place: int, previous: bytes, site_key: bytes, valid: Mapping[int, bytes]) -> str:
    if record.number > place:
        return f"record {place} is missing: number {record.number} stands in its place"
    if record.number != place:
        return f"number {record.number} stands in the place of record {place}"
    if record.previous != previous:
        return "it does not follow the record before it"
    if not _is_whole(record):
        return "its content is not what was written"
    if not _is_signed(record, site_key):
        return "it is not signed by this hospital's key"
    if valid.get(record.number, record.hash) != record.hash:
        return "it is not the record that the coordinator counter-signed"
    return "" if entry_in(record) is not None else "its content cannot be read, or is not in its one form"


def _is_whole(record: Record) -> bool:
    return hash_of(record.number, record.previous, record.content) == record.hash


def _is_signed(record: Record, site_key: bytes) -> bool:
    return Checkpoint(record.number, record.hash, record.signature).is_of(site_key)


def _gaps(records: Sequence[Record], site_key: bytes) -> Iterator[int]:
    """Numbers before the last record that is the hospital's own, as far as no record bears them."""
    own = (r.number for r in reversed(records) if r.number > 0 and _is_whole(r) and _is_signed(r, site_key))
    there = {record.number for record in records}
    return islice((number for number in range(1, next(own, 1)) if number not in there), MOST_GAPS)


def entry_in(record: Record) -> Entry | None:
    """What a record says; None where it cannot be read."""
    try:
        return record.entry
    except ValueError:
        return None


def read_receipts(path: Path) -> dict[int, tuple[bytes, bytes]]:
    """Receipts as `clinimeta coordinator receipts` writes them: a line each, number, hash and signature.

    Raises:
        LedgerFileError: it is no such file.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        return {int(n): (bytes.fromhex(digest), bytes.fromhex(signature)) for n, digest, signature in lines}
    except (OSError, ValueError):
        raise LedgerFileError(
            "these are no receipts",
            where=str(path),
            expected="lines of number, hash and signature, as `clinimeta coordinator receipts` writes them",
            remedy="ask the coordinator's operator for them again",
        ) from None


def text(findings: Findings) -> str:
    """For a terminal: integrity, then completeness."""
    if findings.intact:
        lines = [f"integrity: all {findings.records} records are as they were written"]
    else:
        lines = [f"integrity: BROKEN at record {findings.broken}: {findings.why}"]
    if findings.missing:
        shown = ", ".join(map(str, findings.missing[:10])) + (" ..." if len(findings.missing) > 10 else "")
        lines.append(f"completeness: INCOMPLETE: records that were there are missing: {shown}")
    if findings.unread_receipts:
        lines.append(
            f"completeness: UNKNOWN: {findings.unread_receipts} receipts are not the coordinator's for "
            "this ledger"
        )
    if not findings.intact:
        lines.append(f"counter-signed by the coordinator and sound: all records up to {findings.witnessed}")
    elif findings.complete:
        alone = findings.records - findings.witnessed
        rest = f"; the last {alone} are this hospital's word alone" if alone else ""
        lines.append(
            f"completeness: all records up to number {findings.witnessed} are counter-signed by the "
            f"coordinator{rest}"
        )
    return "\n".join(lines)
