"""Files that only their owner may read: keys, secrets, state."""

import os
import stat
from pathlib import Path

from clinimeta.common.errors import UserError
from clinimeta.common.files import sync

_SHOWN = "a secret would not be private"


def make_private_folder(path: Path, what: str = _SHOWN) -> None:
    """A folder of mode 0700, made where it is missing.

    Raises:
        UserError: it belongs to somebody else, or others may enter it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(path, 0o700, what)


def write_secret(path: Path, data: bytes) -> None:
    """A new file of mode 0600, on disk before this returns.

    Raises:
        UserError: there is one already: a secret is not overwritten.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise UserError(
            "there is a secret already", where=str(path), remedy="use it, or move it away first"
        ) from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        sync(file)


def read_secret(path: Path) -> bytes:
    """The content of a file that only its owner may read.

    Raises:
        UserError: it is missing, somebody else's, a link, or open to others.
    """
    require_private(path, 0o600)
    return path.read_bytes()


def require_private(path: Path, mode: int, what: str = _SHOWN) -> None:
    """Do nothing, if the file or folder is the owner's only; `what` is said where it is not.

    Raises:
        UserError: it is missing, somebody else's, a link, or open to others.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise UserError("a file is missing", where=str(path), remedy="restore it from a backup") from None
    wrong = stat.S_IMODE(found.st_mode) & ~mode
    if path.is_symlink() or found.st_uid != os.geteuid() or wrong:
        raise UserError(
            what,
            where=str(path),
            found=f"mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}",
            expected=f"mode {mode:04o}, owner {os.geteuid()}, no link",
            remedy=f"chmod {mode:o} {path}",
        )
