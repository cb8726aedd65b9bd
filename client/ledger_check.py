"""Verify a ledger, offline and without writing to it: is what is there unchanged, and is all of it there?"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clinimeta.client.ledger import Entry, Record, hash_of
from clinimeta.common.errors import LedgerFileError
from clinimeta.common.receipts import Checkpoint, genesis, is_receipt

Receipts = Mapping[int, tuple[bytes, bytes]]
"""Number of a record -> its hash, and the coordinator's signature."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a ledger came to.

    `broken` is the first record that is not as it was written, and `why`; None where all are. `missing` are
    numbers of records that the coordinator has counter-signed, and that are not there. `witnessed` is the
    last counter-signed record: those after it are the hospital's word alone.
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
    return examine(records, {**receipts, **(more or {})}, site_key, coordinator_key)


def read(path: Path) -> tuple[list[Record], dict[int, tuple[bytes, bytes]]]:
    """What the file holds, unchecked.

    Raises:
        LedgerFileError: there is no such file, or it is no ledger.
    """
    if not path.is_file():
        raise LedgerFileError("there is no ledger", where=str(path), remedy="check the path")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT number, previous, content, hash, signature FROM records ORDER BY number"
            ).fetchall()
            signed = database.execute("SELECT number, hash, signature FROM receipts").fetchall()
    except sqlite3.Error as error:
        raise LedgerFileError(
            "the file cannot be read as a ledger",
            where=str(path),
            found=type(error).__name__,
            remedy="restore it from a backup, and keep this one as evidence",
        ) from None
    return [Record(*row) for row in rows], {
        number: (digest, signature) for number, digest, signature in signed
    }


def examine(
    records: Sequence[Record], receipts: Receipts, site_key: bytes, coordinator_key: bytes
) -> Findings:
    """Hold every record against the one before it, its signature and the receipts."""
    valid = {
        number: digest
        for number, (digest, signature) in receipts.items()
        if is_receipt(signature, Checkpoint(number, digest, bytes(64)), site_key, coordinator_key)
    }
    broken, why = None, ""
    previous = genesis(site_key)
    for place, record in enumerate(records, start=1):
        why = _wrong(record, place, previous, site_key, valid)
        if why:
            broken = place
            break
        previous = record.hash
    there = {record.number for record in records}
    return Findings(
        records=len(records),
        broken=broken,
        why=why,
        witnessed=max((number for number in valid if number in there), default=0),
        missing=tuple(sorted(set(valid) - there)),
        unread_receipts=len(receipts) - len(valid),
    )


def _wrong(record: Record, place: int, previous: bytes, site_key: bytes, valid: Mapping[int, bytes]) -> str:
    if record.number != place:
        return f"record {place} is missing: number {record.number} stands in its place"
    if record.previous != previous:
        return "it does not follow the record before it"
    if hash_of(record.number, record.previous, record.content) != record.hash:
        return "its content is not what was written"
    if not Checkpoint(record.number, record.hash, record.signature).is_of(site_key):
        return "it is not signed by this hospital's key"
    if valid.get(record.number, record.hash) != record.hash:
        return "it is not the record that the coordinator counter-signed"
    try:
        entry = Entry.parse(record.content)
    except (ValueError, TypeError, KeyError):
        return "its content cannot be read"
    return "" if entry.canonical() == record.content else "its content is not in its one canonical form"


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
        lines.append(f"completeness: INCOMPLETE: counter-signed records are missing: {shown}")
    elif findings.unread_receipts:
        lines.append(f"completeness: UNKNOWN: {findings.unread_receipts} receipts are not the coordinator's")
    else:
        alone = findings.records - findings.witnessed
        lines.append(
            f"completeness: all records up to number {findings.witnessed} are counter-signed by the "
            f"coordinator; the last {alone} are this hospital's word alone"
        )
    return "\n".join(lines)
