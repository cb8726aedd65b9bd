"""`clinimeta coordinator doctor`: what stands in the way of the coordinator, and what to do about it."""

import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx

from clinimeta.common.errors import UserError
from clinimeta.common.findings import Finding
from clinimeta.common.private_files import read_secret, require_private
from clinimeta.common.running import running
from clinimeta.server import enrolment, experiments, pki
from clinimeta.server.config import Home
from clinimeta.server.database import Database

LITTLE_GIB, TOO_LITTLE_GIB = 2.0, 0.2
SOON_DAYS = 30


def examine(home: Home) -> list[Finding]:
    """All findings, the good ones too."""
    return [
        *_folder(home),
        _certificate(home, datetime.now(UTC)),
        disk(home.path),
        *_listeners(home),
        *_contents(home),
    ]


def disk(path: object) -> Finding:
    """Whether there is room."""
    free = shutil.disk_usage(str(path)).free / 2**30
    text = f"{free:.1f} GiB free"
    if free < TOO_LITTLE_GIB:
        return Finding("disk", "fault", text, "make room: nothing can be written soon")
    if free < LITTLE_GIB:
        return Finding("disk", "warning", text, "make room")
    return Finding("disk", "good", text)


def _folder(home: Home) -> Iterator[Finding]:
    checks: dict[str, Callable[[], object]] = {
        "folder": lambda: require_private(home.path, 0o700),
        "server key": lambda: read_secret(home.key),
        "coordinator's key": lambda: read_secret(home.identity_key),
        "Flower's secret": lambda: read_secret(home.superexec_secret),
        "control secret": lambda: read_secret(home.control_secret),
    }
    if home.ca_key.exists():
        checks["authority's key"] = lambda: read_secret(home.ca_key)
    for about, check in checks.items():
        try:
            check()
        except UserError as error:
            yield Finding(about, "fault", f"{error.what}: {error.where}, {error.found}", error.remedy)
        else:
            yield Finding(about, "good", "there, and the owner's only")


def _certificate(home: Home, now: datetime) -> Finding:
    certificate = home.certificate.read_bytes()
    names, left = ", ".join(pki.names_of(certificate)), (pki.ends(certificate) - now).days
    text = f"for {names}; ends in {left} days"
    again = "make a new one: clinimeta coordinator certificate"
    if left < 0:
        return Finding("certificate", "fault", text, again)
    return Finding("certificate", *(("warning", text, again) if left < SOON_DAYS else ("good", text, "")))


def _listeners(home: Home) -> Iterator[Finding]:
    settings, pid = home.settings(), running(home.lock)
    ports = {
        "public port": (settings.public.host, settings.public.port),
        "control port": ("127.0.0.1", settings.control.port),
        "health port": ("127.0.0.1", settings.health.port),
    }
    if pid is None:
        yield Finding("daemon", "warning", "does not run", "clinimeta coordinator up")
        for about, (host, port) in ports.items():
            if _is_free(host, port):
                yield Finding(about, "good", f"{port} is free")
            else:
                fix = "choose another in coordinator.toml, or end what listens there"
                yield Finding(about, "fault", f"{port} is taken by another program", fix)
        return
    yield Finding("daemon", "good", f"runs as process {pid}")
    try:
        answer = httpx.get(f"http://127.0.0.1:{settings.health.port}/readyz", timeout=5)
        said = answer.text.strip()
        ready = answer.status_code == 200
    except httpx.HTTPError as error:
        ready, said = False, type(error).__name__
    if ready:
        yield Finding("ready", "good", "hospitals can connect")
    else:
        yield Finding("ready", "fault", said, "look at its log")


def _contents(home: Home) -> Iterator[Finding]:
    try:
        database = Database.open(home.database)
    except UserError as error:
        yield Finding("database", "fault", f"{error.what}: {error.found}", error.remedy)
        return
    yield Finding("database", "good", "opens, newest tables")
    waiting = [site.name for site in enrolment.known(database, "waiting")]
    if waiting:
        fix = "compare fingerprints by telephone, then: clinimeta coordinator approve NAME"
        yield Finding("hospitals", "warning", f"waiting for your approval: {', '.join(waiting)}", fix)
    for found in experiments.every(database):
        if found.state == "waiting":
            fix = "telephone them; it goes on by itself when they are back"
            yield Finding(found.id, "warning", f"waits: {found.detail}", fix)
        elif found.state == "failed":
            yield Finding(found.id, "fault", found.detail, f"mend that, then: clinimeta resume {found.id}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError:
            return False
    return True
