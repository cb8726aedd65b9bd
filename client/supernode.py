"""Flower's SuperNode as the daemon's child: it carries messages and runs nothing itself.

Run as `python -m clinimeta.client.supernode FOLDER`.
"""

import sys
from pathlib import Path

import structlog

from clinimeta.client.config import Home
from clinimeta.client.enrol import started
from clinimeta.common.errors import UserError
from clinimeta.common.logs import log_to_stderr, quiet_flower
from clinimeta.common.supervision import die_with_parent

log = structlog.get_logger()


def arguments(home: Home) -> list[str]:
    """Flower's command line: TLS and our key, nothing installed, reached from this machine only."""
    settings = home.settings()
    return [
        *("--superlink", settings.coordinator.address),
        *("--root-certificates", str(home.ca_certificate)),
        *("--auth-supernode-private-key", str(home.node_key)),
        *("--host", "127.0.0.1", "--port", str(settings.local.port)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(home.superexec_secret)),
    ]


def main(home: Home) -> None:
    """Run it for as long as the daemon lives."""
    try:
        started(home)
    except UserError as error:
        log.warning("the coordinator could not be told of the start", why=error.what, found=error.found)
    from flwr.supernode.cli.flower_supernode import flower_supernode

    quiet_flower()
    sys.argv[1:] = arguments(home)
    flower_supernode()


if __name__ == "__main__":
    die_with_parent()
    log_to_stderr()
    main(Home(Path(sys.argv[1])))
