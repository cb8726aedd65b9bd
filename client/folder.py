"""Make a hospital's folder: settings, keys and an empty state."""

import os
from pathlib import Path

from clinimeta.client.config import TEMPLATE, Home
from clinimeta.client.keys import make_keys
from clinimeta.common.errors import UserError
from clinimeta.common.files import write_atomically
from clinimeta.common.private_files import make_private_folder, write_secret
from clinimeta.common.settings import quoted


def make_home(path: Path, *, address: str, data: str, port: int, health_port: int) -> Home:
    """A new hospital's folder: settings, keys and an empty state.

    Raises:
        UserError: something is there already.
    """
    if path.exists() and any(path.iterdir()):
        raise UserError(
            "the folder is not empty", where=str(path), expected="a new folder", remedy="choose another"
        )
    make_private_folder(path)
    home = Home(path)
    text = TEMPLATE.format(address=quoted(address), data=quoted(data), port=port, health_port=health_port)
    write_atomically(path / "site.toml", text.encode())
    home.settings()  # reads back
    make_keys(home)
    write_secret(home.superexec_secret, os.urandom(32))
    for folder in (home.state, home.flower):
        make_private_folder(folder)
    return home
