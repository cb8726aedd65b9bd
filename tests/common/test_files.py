"""What a full disk looks like, and what only looks like it; a file is whole or as it was."""

import os
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from clinimeta.common.files import is_full, write_atomically


def full_disk() -> BaseException:
    with pytest.raises(OSError, match="No space") as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    return caught.value


def full_database(path: Path) -> BaseException:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE TABLE t (x BLOB)"))
        connection.execute(sa.text("PRAGMA max_page_count = 3"))
        with pytest.raises(sa.exc.OperationalError) as caught:
            connection.execute(sa.text("INSERT INTO t VALUES (randomblob(100000))"))
    engine.dispose()
    return caught.value


def test_no_room_is_told_from_other_errors(tmp_path: Path) -> None:
    assert is_full(full_disk())
    assert is_full(full_database(tmp_path / "db"))
    wrapped = RuntimeError("something of ours")
    wrapped.__cause__ = full_disk()
    assert is_full(wrapped)
    for other in (OSError(13, "denied"), sqlite3.OperationalError("locked"), ValueError("x"), KeyError()):
        assert not is_full(other)


def test_a_file_that_finds_no_room_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, error = tmp_path / "model", full_disk()
    write_atomically(path, b"before")

    def none_left(_handle: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", none_left)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"after, and longer")
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
