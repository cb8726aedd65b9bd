"""Folders and files that are the owner's only, or are not used (run by the site)."""

import os
import stat
from pathlib import Path

from clinimeta.common.errors import UserError


def make_private(folder: Path, what: str) -> None:
    """Make the folder where it is missing, mode 0700.

    Raises:
        UserError: it belongs to somebody else, or others may enter it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(folder, 0o700, what)


def require_private(path: Path, mode: int, what: str) -> None:
    """The path is ours, no link, and open to nobody else; `what` is said where it is not.

    Raises:
        UserError: it is not so, or it is not there.
    """
    try:
        found = path.lstat()
    except OSError:
        raise UserError(what, where=str(path), found="nothing there", remedy="check the path") from None
    if path.is_symlink() or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & ~mode:
        raise UserError(
            what,
            where=str(path),
            found=f"mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}",
            expected=f"mode {mode:04o}, owner {os.geteuid()}, no link",
            remedy=f"chmod {mode:o} {path}",
        )
