"""Doctor: the last failure in a sentence with its fix, what a check finds, a redacted support bundle."""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from importlib.metadata import version

from clinimeta.common.findings import Finding
from clinimeta.common.running import running
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen
from clinimeta.server import enrolment, failures, views
from clinimeta.server.console.base import Console
from clinimeta.server.doctor import examine

SHOWN = 20
BUNDLED = 200


@dataclass(frozen=True, slots=True)
class Doctor:
    """How the coordinator is: its process, the last failure, more failures, and findings (faults first)."""

    pid: int | None
    last: failures.Failure | None
    failures: tuple[failures.Failure, ...]
    findings: tuple[Finding, ...]


def doctor_screen(console: Console, _who: Who) -> Doctor:
    """Look at it now."""
    with console.database.engine.connect() as connection:
        found = failures.last_failures(connection, limit=SHOWN)
    order = {"fault": 0, "warning": 1, "good": 2}
    findings = sorted(examine(console.home), key=lambda one: order[one.state])
    return Doctor(running(console.home.lock), found[0] if found else None, found, tuple(findings))


def support_bundle(console: Console) -> bytes:
    """A ZIP file for whoever helps: versions, findings, failures, counts. No key, token, name or address.

    Hospitals are numbered; the folder's path is replaced.
    """
    with console.database.engine.connect() as connection:
        lines = views.federation(connection, enrolment.now(), limit=1000).sites
        runs = views.runs(connection, limit=BUNDLED)
        found = failures.last_failures(connection, limit=BUNDLED)
    hidden = _Hidden(console, [one.name for one in lines])
    parts = {
        "versions.json": {
            name: version(name) for name in ("clinimeta", "flwr", "torch", "sqlalchemy", "fastapi")
        },
        "findings.json": [asdict(one) for one in examine(console.home)],
        "failures.json": [asdict(one) for one in found],
        "hospitals.json": [
            {"site": one.name, "state": one.state, "software": one.software, "last_contact": one.last_contact}
            for one in lines
        ],
        "runs.json": [
            {"state": one.state, "detail": one.detail, "round": one.round, "rounds": one.rounds}
            | {"sites": len(one.participants), "submissions": one.submissions, "changed_at": one.changed_at}
            for one in runs
        ],
    }
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in parts.items():
            archive.writestr(name, hidden.in_text(json.dumps(values, indent=1, ensure_ascii=False)))
    return output.getvalue()


class _Hidden:
    """Replaces names of hospitals, of the federation and of folders, wherever they stand."""

    def __init__(self, console: Console, sites: list[str]) -> None:
        home = console.home
        names = {site: f"hospital-{number}" for number, site in enumerate(sorted(sites), start=1)}
        names |= {str(home.path): "FOLDER", home.settings().name: "FEDERATION"}
        spelled = {json.dumps(name, ensure_ascii=False)[1:-1]: text for name, text in names.items() if name}
        self._names = sorted(spelled.items(), key=lambda pair: -len(pair[0]))

    def in_text(self, text: str) -> str:
        for name, instead in self._names:
            text = text.replace(name, instead)
        return text


SCREENS = (Screen("/doctor", May.READ, "Doctor", doctor_screen, "doctor.html", nav=True),)
