"""What every screen of the hospital's console is given."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from clinimeta.client.config import Home
from clinimeta.common.files import sync
from clinimeta.common.web.accounts import Accounts
from clinimeta.common.web.roles import Who
from clinimeta.common.web.shell import Change


@dataclass(frozen=True, slots=True)
class Console:
    """The hospital's folder, and the console's accounts."""

    home: Home
    accounts: Accounts


def record(console: Console, who: Who, body: Change, what: str, about: str = "") -> None:
    """One more line in `state/changes.jsonl`: who did what through the console, when (UTC) and why."""
    line = {
        "at": datetime.now(UTC).isoformat(),
        "who": who.name,
        "role": who.role.value,
        "what": what,
        "about": about,
        "reason": body.reason,
    }
    with console.home.changes.open("ab") as file:
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        sync(file)
    console.home.changes.chmod(0o600)
