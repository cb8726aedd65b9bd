"""A site's privacy budget: every noisy answer is asked for, recorded on disk, and only then made.

The site keeps this file itself and refuses when its budget is spent; a number that a coordinator keeps is
only a display. An SQLite database, 0600 in a folder 0700, in which an answer that was recorded survives a
killed process and a power cut. What a crash leaves recorded and unsent stays spent.

Costs add up as Gaussians do: exactly, over rounds, runs and studies with different noise
(`privacy.accounting.composed`). Every answer counts in full, whoever else took part.
"""

import math
import os
import secrets
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from clinimeta.common.errors import BudgetConflictError, BudgetFileError, BudgetSpentError
from clinimeta.common.privacy.accounting import composed, gaussian_epsilon, largest_mu

_APPLICATION = 0x434D4231  # "CMB1", in the file's header
_WAIT_S = 30.0
_TABLES = """
CREATE TABLE lifetime (
  only INTEGER PRIMARY KEY CHECK (only = 1), epsilon REAL NOT NULL, delta REAL NOT NULL
);
CREATE TABLE studies (study TEXT PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL);
CREATE TABLE answers (
  number INTEGER PRIMARY KEY,
  study TEXT NOT NULL REFERENCES studies, run TEXT NOT NULL,
  round INTEGER NOT NULL, attempt INTEGER NOT NULL,
  content TEXT NOT NULL, multiplier REAL NOT NULL, sensitivity REAL NOT NULL,
  at TEXT NOT NULL, noise_key BLOB,
  UNIQUE (run, round, attempt)
);
"""


@dataclass(frozen=True, slots=True)
class Allowance:
    """As much as may be spent on any one patient: epsilon, at this delta.

    Raises:
        ValueError: epsilon is not positive, or delta is not between 0 and 1.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        largest_mu(self.epsilon, self.delta)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is about to be released: a sum with Gaussian noise.

    `study` is the digest of what the hospital approved. `content` is a digest of all that the answer is
    made from besides the site's table: the plan, the parameters received, clipping, scale. `multiplier` is
    the noise multiplier that the answer is guaranteed to have, in units of one patient; `sensitivity` is kept
    for the reader.
    """

    study: str
    run: str
    round: int
    attempt: int
    content: str
    multiplier: float
    sensitivity: float


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer of the history, and when (UTC, ISO 8601) it was recorded."""

    answer: Answer
    at: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """The answer may be made. All its randomness (noise, rounding) must come from `key`, 32 secret bytes.

    `again`: it was reserved before, costs nothing more, and with the same key comes out the same.
    """

    key: bytes = field(repr=False)
    again: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """A site's budget file; any number of processes may use it at once. Make it with `create` or `open`.

    The lifetime's allowance is fixed in the file. `within` is a second one, which may be made smaller or
    larger at any time; an answer must fit into both.
    """

    path: Path
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    new_key: Callable[[], bytes] = field(default=lambda: secrets.token_bytes(32))
    within: Allowance | None = None

    @staticmethod
    def create(path: Path, lifetime: Allowance) -> "Budget":
        """A new budget; `lifetime` is what all studies together may ever spend on a patient of this site.

        Raises:
            BudgetFileError: there is a file already, or others may enter the folder.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(path.parent, 0o700)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise BudgetFileError(
                "there is a privacy budget already",
                where=str(path),
                remedy="use it; a new one would forget what was spent",
            ) from None
        budget = Budget(path)
        with budget._transaction(new=True) as database:
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO lifetime VALUES (1, ?, ?)", (lifetime.epsilon, lifetime.delta))
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
        return budget

    @staticmethod
    def open(path: Path) -> "Budget":
        """An existing budget. A missing file is an error, not a full budget.

        Raises:
            BudgetFileError: it is missing, damaged, not one of ours, or others may read it.
        """
        budget = Budget(path)
        budget.lifetime()
        return budget

    def reserve(self, answer: Answer, allowance: Allowance) -> Reservation:
        """Record an answer that is about to be made, if `allowance` (the study's) and the lifetime's let it.

        Returns only when it is on the disk. Asked again for the same answer it returns the same key, until
        `forget_keys`. The allowance of a study is fixed by its first answer.

        Raises:
            BudgetSpentError: it would cost more than is left; nothing was recorded.
            BudgetConflictError: the same run, round and attempt was recorded with other content (a new one
                is needed), or the study with another allowance.
            BudgetFileError: the file cannot be used.
            ValueError: the noise multiplier is not positive.
        """
        with self._transaction() as database:
            before = _require_allowed(database, answer, allowance, self.within)
            if before is not None:
                return Reservation(before, again=True)
            database.execute(
                "INSERT OR IGNORE INTO studies VALUES (?, ?, ?)",
                (answer.study, allowance.epsilon, allowance.delta),
            )
            key = self.new_key()
            database.execute(
                "INSERT INTO answers (study, run, round, attempt, content, multiplier, sensitivity, at, "
                "noise_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(answer.study, answer.run, answer.round, answer.attempt, answer.content),
                    *(answer.multiplier, answer.sensitivity),
                    *(self.clock().isoformat(timespec="seconds"), key),
                ),
            )
        return Reservation(key, again=False)

    def require(self, answer: Answer, allowance: Allowance) -> None:
        """Raise what `reserve` would raise, and record nothing: to ask before a record is looked at.

        Raises:
            BudgetError, BudgetFileError, ValueError: as `reserve`.
        """
        with self._transaction() as database:
            _require_allowed(database, answer, allowance, self.within)

    def forget_keys(self, run: str, before_round: int) -> None:
        """Erase the keys of a run's earlier rounds: nobody needs them again, and they undo the noise.

        Raises:
            BudgetFileError: the file cannot be used.
        """
        with self._transaction() as database:
            database.execute(
                "UPDATE answers SET noise_key = NULL WHERE run = ? AND round < ?", (run, before_round)
            )

    def spent(self, study: str | None = None, *, delta: float | None = None) -> float:
        """The exact epsilon so far, of one study or (None) of everything; `delta`: at another than its own.

        Raises:
            BudgetFileError: the file cannot be used.
        """
        with self._transaction() as database:
            if delta is None and study is None:
                delta = _lifetime(database).delta
            elif delta is None:
                row = database.execute("SELECT delta FROM studies WHERE study = ?", (study,)).fetchone()
                if row is None:
                    return 0.0
                delta = float(row[0])
            return gaussian_epsilon(composed(1 / z for z in _multipliers(database, study)), delta)

    def lifetime(self) -> Allowance:
        """What all studies together may spend.

        Raises:
            BudgetFileError: the file cannot be used.
        """
        with self._transaction() as database:
            return _lifetime(database)

    def history(self, study: str | None = None) -> tuple[Entry, ...]:
        """Everything that was recorded (for one study), the oldest first.

        Raises:
            BudgetFileError: the file cannot be used.
        """
        with self._transaction() as database:
            rows = database.execute(
                "SELECT study, run, round, attempt, content, multiplier, sensitivity, at FROM answers "
                "WHERE ?1 IS NULL OR study = ?1 ORDER BY number",
                (study,),
            ).fetchall()
        return tuple(Entry(Answer(*row[:-1]), row[-1]) for row in rows)

    @contextmanager
    def _transaction(self, *, new: bool = False) -> Iterator[sqlite3.Connection]:
        """Alone with the file; on the disk when it ends, undone where it raises."""
        _require_private(self.path.parent, 0o700)
        _require_private(self.path, 0o600)
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)) as database:
                # EXTRA is FULL, and the folder is synced too when the journal goes: a power cut cannot undo.
                database.execute("PRAGMA synchronous = EXTRA")
                database.execute("PRAGMA secure_delete = ON")
                database.execute("PRAGMA foreign_keys = ON")
                database.execute("BEGIN IMMEDIATE")
                if not new and database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
                    raise sqlite3.DatabaseError("of another program")
                try:
                    yield database
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise BudgetFileError(
                "the privacy budget cannot be used",
                where=str(self.path),
                found=str(error),
                expected="a file that clinimeta made, on a disk that can be written",
                remedy="restore the newest backup; what was released since is missing in it",
            ) from None


def _require_allowed(
    database: sqlite3.Connection, answer: Answer, allowance: Allowance, within: Allowance | None
) -> bytes | None:
    """The key of the same answer if it was recorded; None where it was not, and may be.

    Raises:
        BudgetError, ValueError: as `Budget.reserve`.
    """
    if not 0 < answer.multiplier < math.inf:
        raise ValueError(f"the noise multiplier is {answer.multiplier}, expected over 0")
    before = _recorded(database, answer)
    if before is not None:
        return before
    promised = database.execute(
        "SELECT epsilon, delta FROM studies WHERE study = ?", (answer.study,)
    ).fetchone()
    if promised is not None and Allowance(*promised) != allowance:
        raise BudgetConflictError(
            f"this study was promised epsilon {promised[0]:g} at delta {promised[1]:g} when it "
            f"began, not epsilon {allowance.epsilon:g} at delta {allowance.delta:g}"
        )
    _require_left("study", _multipliers(database, answer.study), answer, allowance)
    for allowed in (_lifetime(database), *(() if within is None else (within,))):
        _require_left("lifetime", _multipliers(database), answer, allowed)
    return None


def _recorded(database: sqlite3.Connection, answer: Answer) -> bytes | None:
    """The key of the same answer if it was recorded.

    Raises:
        BudgetConflictError: something else was, or its key is gone.
    """
    row = database.execute(
        "SELECT study, run, round, attempt, content, multiplier, sensitivity, noise_key FROM answers "
        "WHERE run = ? AND round = ? AND attempt = ?",
        (answer.run, answer.round, answer.attempt),
    ).fetchone()
    if row is None:
        return None
    where = f"round {answer.round}, attempt {answer.attempt} of run '{answer.run}'"
    if Answer(*row[:-1]) != answer:
        raise BudgetConflictError(f"{where} was recorded with other content; a new attempt is needed")
    if row[-1] is None:
        raise BudgetConflictError(f"{where} is over, and its key is erased; a new attempt is needed")
    return bytes(row[-1])


def _multipliers(database: sqlite3.Connection, study: str | None = None) -> list[float]:
    rows = database.execute("SELECT multiplier FROM answers WHERE ?1 IS NULL OR study = ?1", (study,))
    return [z for (z,) in rows]


def _lifetime(database: sqlite3.Connection) -> Allowance:
    return Allowance(*database.execute("SELECT epsilon, delta FROM lifetime").fetchone())


def _require_left(scope: str, before: list[float], answer: Answer, allowed: Allowance) -> None:
    spent = composed(1 / z for z in before)
    would_be = composed([spent, 1 / answer.multiplier])
    if would_be > largest_mu(allowed.epsilon, allowed.delta):
        so_far, then = (gaussian_epsilon(mu, allowed.delta) for mu in (spent, would_be))
        raise BudgetSpentError(scope, so_far, then, allowed.epsilon, allowed.delta)


def _require_private(path: Path, mode: int) -> None:
    """Ours, not a link, and nobody else's to read."""
    try:
        found = path.lstat()
    except OSError:
        raise BudgetFileError(
            "there is no privacy budget here",
            where=str(path),
            expected="the file that was made when this site was set up",
            remedy="check the path, or restore the newest backup: a new file would forget what was spent",
        ) from None
    fits = stat.S_ISDIR(found.st_mode) if mode == 0o700 else stat.S_ISREG(found.st_mode)
    if not fits or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise BudgetFileError(
            "others may read or replace the privacy budget",
            where=str(path),
            found=f"{stat.filemode(found.st_mode)}, owner {found.st_uid}",
            expected=f"mode {mode:o}, owner {os.geteuid()}",
            remedy=f"chmod {mode:o} {path}",
        )
