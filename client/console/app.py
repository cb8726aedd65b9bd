"""The hospital's console put together, and its server: on loopback, at the hospital only."""

import signal
from datetime import UTC, datetime

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response

from clinimeta.client.config import Home
from clinimeta.client.console import data, deciding, leaving, policing, status
from clinimeta.client.console.base import Console
from clinimeta.client.ledger_cli import certificate_of
from clinimeta.common.web.accounts import Accounts
from clinimeta.common.web.headers import LOOPBACK, App, guarded
from clinimeta.common.web.pages import environment
from clinimeta.common.web.roles import May
from clinimeta.common.web.shell import Shell
from clinimeta.common.web.signing_in import add_signing_in

log = structlog.get_logger()

SCREENS = (*status.SCREENS, *data.SCREENS, *deciding.SCREENS, *policing.SCREENS, *leaving.SCREENS)
ACTIONS = (*deciding.ACTIONS, *policing.ACTIONS)


def open_console(home: Home) -> Console:
    """A console over a hospital's folder.

    Raises:
        UserError: the console's accounts cannot be used.
    """
    return Console(home, Accounts.open(home.console))


def console_app(console: Console) -> FastAPI:
    """The application, without the layer of `web.headers`."""
    pages = environment("clinimeta.client.console")
    shell = Shell("clinimeta: this hospital", console, console.accounts, pages, SCREENS, ACTIONS)
    app = shell.app()
    add_signing_in(app, shell)

    @app.get("/ledger/certificate", include_in_schema=False)
    def certificate(request: Request) -> Response:
        shell.require(request, May.READ)
        page = certificate_of(console.home, None, datetime.now(UTC))
        headers = {"content-disposition": 'attachment; filename="certificate.html"'}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    return app


def served(console: Console) -> App:
    """The application as it is served, for requests to this machine's own names."""
    return guarded(console_app(console), frozenset(LOOPBACK), tls=False)


def serve(console: Console, port: int) -> None:
    """Serve the console on loopback until SIGTERM or Ctrl-C."""
    config = uvicorn.Config(
        served(console),
        host="127.0.0.1",
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    log.info("the console answers", address=f"http://127.0.0.1:{port}/")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # uvicorn hears them first, and hands them on when it has ended
    uvicorn.Server(config).run()
