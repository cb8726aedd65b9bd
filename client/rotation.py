"""New keys for a hospital: made beside the old ones, and in their place once the coordinator knows them.

    next/            the new keys, until they hold; kept, as an answer that got lost is asked for again
    former/KEY/      a hospital's folder of its own: old keys and the ledger that they signed, to be verified

Whatever ends it, doing it again goes on where it was: each step is one change of the file system.
"""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from clinimeta.client.config import Home
from clinimeta.client.enrol import Enrolment, enrol
from clinimeta.client.keys import identity, make_keys
from clinimeta.client.ledger import Ledger
from clinimeta.common.files import sync_folder, write_atomically
from clinimeta.common.private_files import make_private_folder
from clinimeta.common.running import only_one
from clinimeta.common.secagg.identity import fingerprint

_REPLACED: Final = ("ca.crt", "node.key", "identity.key", "enrolment.json")
"""In this order: the last one says that all are."""


def rotate(home: Home, token: str) -> tuple[Enrolment, str]:
    """Enrol new keys with a token of `clinimeta coordinator rotate`; what came back, and the state.

    Raises:
        UserError: the daemon runs, the hospital is not enrolled, or it is refused; the old keys hold.
    """
    Enrolment.of(home)
    with only_one(home.lock):
        settle(home)
        new = _next(home)
        if not (new.node_key.exists() and new.identity_key.exists()):
            shutil.rmtree(new.path, ignore_errors=True)  # half made, so never sent
            make_private_folder(new.path)
            make_keys(new)
        found = enrol(home, token, new)
        settle(home)
    return found


def settle(home: Home) -> Path | None:
    """Put new keys that the coordinator knows in place of the old; where those are now, or None.

    Raises:
        UserError: a file cannot be read, or is open to others.
    """
    new = _next(home)
    if not new.enrolment.exists():
        return None
    mark = new.path / "former"
    if not mark.exists():
        write_atomically(mark, _name(home).encode())
    former = Home(home.former / mark.read_text())
    for folder in (home.former, former.path, former.state):
        make_private_folder(folder)
    for name in ("site.toml", *_REPLACED):
        if (home.path / name).exists() and not (former.path / name).exists():
            write_atomically(former.path / name, (home.path / name).read_bytes(), 0o600)
    if home.ledger.exists() and not former.ledger.exists():
        if former.identity_key.exists():
            Ledger(home.ledger, identity(former, ""))  # opened, it undoes what a crash left half written
        os.rename(home.ledger, former.ledger)
    for folder in (former.state, former.path, home.former, home.state):
        sync_folder(folder)
    for name in _REPLACED:
        if (new.path / name).exists():
            os.replace(new.path / name, home.path / name)
    sync_folder(home.path)
    shutil.rmtree(new.path)
    return former.path


def _name(home: Home) -> str:
    """What to call the old keys: by their fingerprint, or by the day where they are lost."""
    if home.identity_key.exists():
        return fingerprint(identity(home, "").public).replace(" ", "-")
    return f"lost-{datetime.now(UTC).date()}"


def _next(home: Home) -> Home:
    return Home(home.path / "next")
