"""`clinimeta site check`: what stands in the way of this hospital, and what to do about it. Sends no data."""

import shutil
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from urllib.request import getproxies, proxy_bypass

from cryptography import x509

from clinimeta.client.config import Home
from clinimeta.client.enrol import LOST_CA, Enrolment, standing
from clinimeta.client.sources.base import configured
from clinimeta.client.sources.checking import check_section
from clinimeta.common.errors import UserError
from clinimeta.common.findings import Finding
from clinimeta.common.private_files import read_secret, require_private
from clinimeta.common.running import running
from clinimeta.common.tasks.schema import Schema

LITTLE_GIB, TOO_LITTLE_GIB = 1.0, 0.1
CLOCK_S = 5.0
"""Flower refuses a hospital whose clock is further ahead."""


def examine(home: Home, table: Schema | None = None) -> list[Finding]:
    """All findings, the good ones too; with a study's table also those about the hospital's own rows."""
    return [
        *_versions(),
        *_files(home),
        _disk(home),
        *_ports(home),
        _proxy(home),
        *(_table(home) if table is None else ()),
        *_policy(home),
        *_coordinator(home),
        *(_data(home, table) if table is not None else ()),
    ]


def _versions() -> Iterator[Finding]:
    names = ("clinimeta", "flwr", "torch")
    yield Finding("versions", "good", ", ".join(f"{name} {version(name)}" for name in names))


def _files(home: Home) -> Iterator[Finding]:
    checks: dict[str, Callable[[], object]] = {
        "folder": lambda: require_private(home.path, 0o700),
        "node key": lambda: read_secret(home.node_key),
        "hospital's key": lambda: read_secret(home.identity_key),
        "Flower's secret": lambda: read_secret(home.superexec_secret),
        "state": lambda: require_private(home.state, 0o700),
    }
    for about, check in checks.items():
        try:
            check()
        except UserError as error:
            yield Finding(about, "fault", f"{error.what}: {error.where}, {error.found}", error.remedy)
        else:
            yield Finding(about, "good", "there, and the owner's only")


def _data(home: Home, table: Schema) -> Sequence[Finding]:
    return check_section(home.settings().data, f"{home.path / 'site.toml'}, [data]", table, home.path)


def _disk(home: Home) -> Finding:
    free = shutil.disk_usage(home.path).free / 2**30
    text = f"{free:.1f} GiB free"
    if free < TOO_LITTLE_GIB:
        return Finding("disk", "fault", text, "make room: nothing can leave that is not in the ledger first")
    return Finding("disk", *(("warning", text, "make room") if free < LITTLE_GIB else ("good", text, "")))


def _ports(home: Home) -> Iterator[Finding]:
    local, pid = home.settings().local, running(home.lock)
    if pid is not None:
        yield Finding("daemon", "good", f"runs as process {pid}")
        return
    yield Finding("daemon", "warning", "does not run", "clinimeta site up")
    for about, port in (("local port", local.port), ("health port", local.health_port)):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                fix = "choose another in site.toml, or end what listens there"
                yield Finding(about, "fault", f"{port} is taken by another program", fix)
            else:
                yield Finding(about, "good", f"{port} is free")


def _proxy(home: Home) -> Finding:
    host = home.settings().coordinator.address.rpartition(":")[0]
    proxy = getproxies().get("https", "")
    if not proxy:
        return Finding("proxy", "good", "none is set (HTTPS_PROXY): straight to the coordinator")
    if proxy_bypass(host):
        return Finding("proxy", "good", f"not for {host} (NO_PROXY)")
    place = proxy.rpartition("@")[2]  # a proxy's URL may hold a password
    return Finding("proxy", "good", f"through {place} (HTTPS_PROXY)")


def _table(home: Home) -> Iterator[Finding]:
    settings = home.settings()
    try:
        source = configured(settings.data, f"{home.path / 'site.toml'}, [data]")
        records = source.read(home.path)
    except UserError as error:
        text = "; ".join(part for part in (error.what, error.where, error.found) if part)
        yield Finding("table", "fault", text, error.remedy)
        return
    kind = settings.data.get("kind")
    if len(records):
        yield Finding("table", "good", f"{kind}: {len(records)} rows, {len(records.cells)} columns")
    else:
        yield Finding("table", "fault", f"{kind}: no rows", "check the export, or the query")


def _policy(home: Home) -> Iterator[Finding]:
    from clinimeta.client.approvals import Approvals  # which bring torch
    from clinimeta.client.hospital import policy_of
    from clinimeta.client.roster import roster_of

    try:
        policy, roster = policy_of(home), roster_of(home)
        approvals = Approvals(home.approvals)
        waiting = len(approvals.pending())
    except UserError as error:
        yield Finding("policy", "fault", f"{error.what}; {error.where}; {error.found}", error.remedy)
        return
    yield Finding("policy", "good", f"secure aggregation {policy.secure_aggregation}")
    if waiting:
        yield Finding("approvals", "warning", f"{waiting} studies wait", "clinimeta site approve")
    if roster is None and policy.secure_aggregation == "required":
        text = "no roster yet, and the policy asks for secure aggregation"
        fix = "set key in [consortium]; the coordinator hands the signed roster out"
        yield Finding("roster", "warning", text, fix)
    elif roster is not None:
        yield Finding("roster", "good", f"version {roster.version}, {len(roster.members)} hospitals")


def _coordinator(home: Home) -> Iterator[Finding]:
    try:
        enrolment = Enrolment.of(home)
    except UserError as error:
        yield Finding("enrolment", "fault", error.what, error.remedy)
        return
    try:
        certificate = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
        left = (certificate.not_valid_after_utc - datetime.now(UTC)).days
        ssl.create_default_context(cafile=str(home.ca_certificate))
    except (OSError, ValueError, ssl.SSLError) as error:
        yield Finding("certificate", "fault", f"ca.crt cannot be read: {type(error).__name__}", LOST_CA)
        return
    yield Finding("certificate", "good", f"the coordinator's authority, for {left} days more")
    try:
        found = standing(home)
    except UserError as error:
        yield Finding("coordinator", "fault", f"{error.what}: {error.found}", error.remedy)
        return
    address = home.settings().coordinator.address
    yield Finding("coordinator", "good", f"{enrolment.coordinator} answers at {address}")
    if found.state == "approved":
        yield Finding("approval", "good", f"approved as {enrolment.site}")
    else:
        yield Finding(
            "approval", "warning", f"{enrolment.site} is {found.state}", "ask the coordinator's operator"
        )
    ahead = found.ahead_s
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if abs(ahead) >= CLOCK_S:
        yield Finding("clock", "fault", text, "let NTP set the clock: Flower refuses one that is 5 s off")
    else:
        yield Finding("clock", "good", text)
