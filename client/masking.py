"""The site's memory in secure aggregation, in an SQLite file that survives a crash (run by the site).

What was answered is written before it is answered and stays for good; a round's secrets stay until the
round is over or too old. The file is the owner's only, or it is not opened. Not promised: that a disk,
a snapshot or a backup forgets blocks that were overwritten.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from clinimeta.common.private_files import make_private_folder, require_private
from clinimeta.common.secagg.terms import RoundKey

FILE = "rounds.sqlite"
_SHOWN = "the site's secrets would not be private"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answered (
    run TEXT, round INTEGER, attempt INTEGER, phase TEXT, digest BLOB NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (run, round, attempt, phase)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secrets (
    run TEXT, round INTEGER, attempt INTEGER, secrets BLOB NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (run, round, attempt)
);
"""


class SqliteJournal:
    """A `secagg.journal.Journal` in a folder of the site's own (mode 0700), made where it is missing.

    `clock` gives seconds since 1970. Use one object a thread.

    Raises:
        UserError: the folder or the file belongs to somebody else, or others may read it.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        make_private_folder(folder, _SHOWN)
        path = folder / FILE
        if not path.is_symlink():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        require_private(path, 0o600, _SHOWN)
        self._clock = clock
        self._database = sqlite3.connect(path, isolation_level=None, timeout=30)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(_SCHEMA)

    def record(self, key: RoundKey, phase: str, digest: bytes) -> bool:
        """Note that a phase is being answered; False if it was before. Returns when the disk has it."""
        done = self._database.execute(
            "INSERT OR IGNORE INTO answered VALUES (?, ?, ?, ?, ?, ?)",
            (key.run, key.round, key.attempt, phase, digest, self._clock()),
        )
        return done.rowcount == 1

    def answered(self, run: str, round_number: int) -> frozenset[tuple[int, str]]:
        """(attempt, phase) of all that was recorded for a round."""
        found = self._database.execute(
            "SELECT attempt, phase FROM answered WHERE run = ? AND round = ?", (run, round_number)
        )
        return frozenset((int(attempt), str(phase)) for attempt, phase in found)

    def keep(self, key: RoundKey, secrets: bytes) -> None:
        """Keep an attempt's secrets, in place of earlier ones. Returns when the disk has them."""
        self._database.execute(
            "INSERT OR REPLACE INTO secrets VALUES (?, ?, ?, ?, ?)",
            (key.run, key.round, key.attempt, secrets, self._clock()),
        )

    def load(self, key: RoundKey) -> bytes | None:
        """What was kept last, unless it has been erased."""
        found = self._database.execute(
            "SELECT secrets FROM secrets WHERE run = ? AND round = ? AND attempt = ?",
            (key.run, key.round, key.attempt),
        ).fetchone()
        return None if found is None else bytes(found[0])

    def erase(self, key: RoundKey) -> None:
        """Overwrite an attempt's secrets, in the write-ahead log, too."""
        self._database.execute(
            "DELETE FROM secrets WHERE run = ? AND round = ? AND attempt = ?",
            (key.run, key.round, key.attempt),
        )
        self._truncate()

    def erase_older_than(self, age_s: float) -> int:
        """Overwrite the secrets of rounds that nobody finished; how many there were."""
        done = self._database.execute("DELETE FROM secrets WHERE at < ?", (self._clock() - age_s,))
        self._truncate()
        return done.rowcount

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _truncate(self) -> None:
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
