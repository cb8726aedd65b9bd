"""The operator's console put together: all screens and actions, live news, files; and its server."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import sqlalchemy as sa
import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from clinimeta.common.private_files import require_private
from clinimeta.common.web.accounts import Accounts
from clinimeta.common.web.headers import LOOPBACK, App, guarded, require_safe_bind
from clinimeta.common.web.oidc import add_oidc, read_client
from clinimeta.common.web.pages import environment
from clinimeta.common.web.roles import May
from clinimeta.common.web.shell import Shell
from clinimeta.common.web.signing_in import add_signing_in
from clinimeta.server import enrolment
from clinimeta.server.chronicle_tables import rounds
from clinimeta.server.config import Home
from clinimeta.server.console import (
    accounting,
    auditing,
    doctoring,
    enrolling,
    federation,
    models,
    privacy,
    run,
    runs,
    secagg,
    starting,
)
from clinimeta.server.console.base import Console
from clinimeta.server.database import Database, experiments

log = structlog.get_logger()

SCREENS = (
    *federation.SCREENS,
    *runs.SCREENS,
    *run.SCREENS,
    *starting.SCREENS,
    *enrolling.SCREENS,
    *privacy.SCREENS,
    *secagg.SCREENS,
    *models.SCREENS,
    *auditing.SCREENS,
    *doctoring.SCREENS,
    *accounting.SCREENS,
)
ACTIONS = (*enrolling.ACTIONS, *runs.ACTIONS, *starting.ACTIONS, *accounting.ACTIONS)
LOOK_S, HEARTBEAT_S = 1.0, 15.0
"""How often news of a run is looked for, however many watch it; how often a silent stream says so."""


class News:
    """What changed last in a run, looked up once for all who watch it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[float, str]] = {}
        self._lock = asyncio.Lock()

    async def of(self, name: str) -> str:
        """A text that is another one when something changed."""
        async with self._lock:
            at, found = self._known.get(name, (0.0, ""))
            if time.monotonic() - at >= LOOK_S:
                found = await run_in_threadpool(self._look, name)
                self._known[name] = time.monotonic(), found
        return found

    def _look(self, name: str) -> str:
        with self._database.engine.connect() as connection:
            newest = connection.execute(
                sa.select(sa.func.max(rounds.c.change)).where(rounds.c.experiment == name)
            ).scalar()
            changed = connection.execute(
                sa.select(experiments.c.changed_at).where(experiments.c.id == name)
            ).scalar()
        return f"{newest or 0} {changed or ''}"


def shell_of(console: Console, *, tls: bool = False, providers: Mapping[str, str] | None = None) -> Shell:
    """The console's frame."""
    name = f"clinimeta: {console.home.settings().name}"
    pages = environment("clinimeta.server.console")
    return Shell(name, console, console.accounts, pages, SCREENS, ACTIONS, tls=tls, providers=providers or {})


def console_app(console: Console, *, tls: bool = False) -> FastAPI:
    """The application, without the layer of `web.headers`."""
    provider = read_client(console.home.console_settings)
    names = {} if provider is None else {"oidc": provider.provider.title}
    shell = shell_of(console, tls=tls, providers=names)
    app = shell.app()
    add_signing_in(app, shell)
    if provider is not None:
        add_oidc(app, shell, provider)
    news = News(console.database)

    @app.get("/runs/{run}/news", include_in_schema=False)
    async def live(request: Request, run: str) -> Response:
        await run_in_threadpool(shell.require, request, May.READ)

        async def events() -> AsyncIterator[str]:
            told, last = await news.of(run), time.monotonic()
            yield "retry: 3000\n\n"
            while not await request.is_disconnected():
                await asyncio.sleep(LOOK_S)
                found = await news.of(run)
                if found != told:
                    told, last = found, time.monotonic()
                    yield f"event: news\ndata: {found}\n\n"
                elif time.monotonic() - last > HEARTBEAT_S:
                    await run_in_threadpool(
                        shell.require, request, May.READ
                    )  # who was signed out hears no more
                    last = time.monotonic()
                    yield ": nothing new\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/models/{run}/files/{name}", include_in_schema=False)
    def file(request: Request, run: str, name: str) -> Response:
        who, _ = shell.require(request, May.READ)
        data = models.model_file(console, run, name)
        with console.database.change() as connection:
            enrolment.record(connection, who.name, "exported", run, name)
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.get("/doctor/bundle", include_in_schema=False)
    def bundle(request: Request) -> Response:
        shell.require(request, May.AUDIT)
        headers = {"content-disposition": 'attachment; filename="support.zip"'}
        return Response(doctoring.support_bundle(console), media_type="application/zip", headers=headers)

    return app


def open_console(home: Home, studies: Mapping[str, str]) -> Console:
    """A console over a coordinator's folder.

    Raises:
        UserError: the folder, its database or the console's accounts cannot be used.
    """
    return Console(home, Database.open(home.database), Accounts.open(home.console), studies)


def served(console: Console, names: frozenset[str], *, tls: bool = False) -> App:
    """The application as it is served, for requests to these host names only."""
    return guarded(console_app(console, tls=tls), names, tls)


def serve(
    console: Console,
    host: str,
    port: int,
    names: frozenset[str],
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve the console until SIGTERM or Ctrl-C.

    Raises:
        UserError: it would be reachable without TLS, or the key is open to others.
    """
    tls = certificate is not None and key is not None
    require_safe_bind(host, tls)
    if key is not None:
        require_private(key, 0o600)
    config = uvicorn.Config(
        served(console, names | frozenset(LOOPBACK) | {host}, tls=tls),
        host=host,
        port=port,
        ssl_certfile=str(certificate) if certificate else None,
        ssl_keyfile=str(key) if key else None,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    log.info("the console answers", address=f"{'https' if tls else 'http'}://{host}:{port}/")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # uvicorn hears them first, and hands them on when it has ended
    uvicorn.Server(config).run()
