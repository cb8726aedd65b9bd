"""One daemon a folder: a lock that holds its pid, and what to say to it from outside."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clinimeta.common.errors import UserError
from clinimeta.common.supervision import keep_loopback_direct


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold the lock for as long as the context lasts; the kernel lets go of it when the process ends.

    Raises:
        UserError: another process holds it.
    """
    with lock.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "it is running already",
                where=str(lock),
                found=f"process {running(lock)}",
                remedy="stop it first (`down`, or systemctl stop)",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield
        file.truncate(0)


def running(lock: Path) -> int | None:
    """The pid of the daemon that holds the lock, or None."""
    try:
        with lock.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                text = file.read().decode().strip()
                return int(text) if text.isdecimal() else None
    except FileNotFoundError:
        pass
    return None


def stop(lock: Path, patience_s: float) -> bool:
    """End the daemon with SIGTERM and wait; False where none ran.

    Raises:
        UserError: it did not end in time.
    """
    pid = running(lock)
    if pid is None:
        return False
    try:
        process = os.pidfd_open(pid)  # this process, even if another gets its number
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], patience_s)[0]:
            raise UserError(
                "it does not end", where=f"process {pid}", remedy="look at its log; kill -9 loses nothing"
            )
    finally:
        os.close(process)
    return True


def in_background(arguments: Sequence[str], lock: Path, log: Path, ready: str, patience_s: float) -> int:
    """Start this command in a session of its own, wait until `ready` (a URL) answers 200; its pid.

    Raises:
        UserError: it runs already, it ended, or it was not ready in time (it is left running then).
    """
    if (pid := running(lock)) is not None:
        raise UserError("it is running already", where=str(lock), found=f"process {pid}")
    keep_loopback_direct()
    program = [sys.executable, sys.argv[0], *arguments]
    with log.open("ab") as output:
        os.fchmod(output.fileno(), 0o600)
        began = output.tell()
        process = subprocess.Popen(  # noqa: S603 (our own program, no shell)
            program, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    end, why = time.monotonic() + patience_s, "it does not answer"
    while time.monotonic() < end:
        if process.poll() is not None:
            with log.open("rb") as written:
                written.seek(began)
                said = written.read()[-2000:].decode(errors="replace").strip()
            raise UserError(
                "it did not start", where=str(log), found=said, remedy="mend that, then try again"
            )
        try:
            with urllib.request.urlopen(ready, timeout=2) as answer:  # noqa: S310 (loopback)
                if answer.status == 200:
                    return process.pid
        except urllib.error.HTTPError as error:
            why = error.read(500).decode(errors="replace").strip()
        except OSError:
            pass
        time.sleep(0.2)
    raise UserError(
        "it is not ready yet",
        where=str(log),
        found=f"process {process.pid} runs, and says: {why}",
        remedy="it goes on trying; look at its log",
    )
