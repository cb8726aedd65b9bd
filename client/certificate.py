"""The certificate of what left a hospital: one page for a data-protection officer, from the ledger alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from clinimeta.client.activity import by_month, by_study, refusals
from clinimeta.client.ledger import READS, SENT, Record
from clinimeta.client.ledger_check import Findings, entry_in
from clinimeta.common.records import REFUSALS

SHOWN = 50
"""How many of the last records are listed."""

KINDS = {
    "Introduction": "greeting: its name, its software, roughly how many rows it has",
    "MetaGradient": "a sum of learning steps over many small tasks, readable by the coordinator",
    "Quantised": "a sum of learning steps, cut, rounded, and with noise where the study promises it",
    "masked": "a sum of learning steps under a mask: unreadable alone",
    "Masking": "keys and shares of a round of secure aggregation: nothing from the table",
    "Calibration": "how well adapted models fit, summed over patients",
    "Refusal": "a refusal, with its reason",
    "Verdict": "what the policy would say to a study, before it starts",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose ledger it is, and who looks at it with which policy."""

    hospital: str
    fingerprint: str
    coordinator: str
    policy: str


def certificate(subject: Subject, records: Sequence[Record], findings: Findings, made: datetime) -> str:
    """One self-contained HTML page: no scripts, nothing fetched, printable.

    A ledger that is broken or incomplete gets its page too, which says so before anything else.
    """
    readable = [(record.number, entry) for record in records if (entry := entry_in(record)) is not None]
    entries = [entry for _, entry in readable]
    environment = Environment(
        loader=PackageLoader("clinimeta.client"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": in_words, "day": lambda at: at[:10], "minute": lambda at: at[:16]}
    return environment.get_template("certificate.html").render(
        subject=subject,
        entries=readable[-SHOWN:],
        count=len(entries),
        unreadable=len(records) - len(entries),
        findings=findings,
        made=made.isoformat(timespec="minutes"),
        studies=by_study(entries),
        months=by_month(entries),
        refused={REFUSALS.get(code, code): number for code, number in refusals(entries).items()},
        bytes=sum(entry.bytes for entry in entries),
        kinds=KINDS,
        destinations=sorted({entry.to for entry in entries}),
        first=entries[0].at if entries else "",
        last=entries[-1].at if entries else "",
        read=any(
            entry.kind in READS and entry.kind != "masked" and entry.outcome == SENT for entry in entries
        ),
        promised=any(entry.cost is not None for entry in entries),
    )


def in_words(size: int) -> str:
    """A number of bytes for people.

    >>> in_words(1536), in_words(7)
    ('1.5 KiB', '7 bytes')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
