"""Files that are there whole or not at all, also after a power cut."""

import errno
import os
import sqlite3
from pathlib import Path
from typing import IO

_SQLITE_FULL = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
)
"""SQLite calls it an I/O error where the write-ahead log's index cannot grow."""


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` under a temporary name beside `path`, to the disk, and then give it its name.

    `mode` is what the file may be used for at most, less what the process's umask takes away.

    Raises:
        OSError: the folder cannot be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)  # of a process that died: its mode may be another
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            sync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Do not return before the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sync(file: IO[bytes]) -> None:
    """Do not return before the file's content is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def is_full(error: BaseException) -> bool:
    """Whether something failed because there was no room on the disk, or in the quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) in _SQLITE_FULL:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
