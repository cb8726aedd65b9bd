"""Findings of a check: what was looked at, how it stands, and what to do about it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from clinimeta.common.errors import UserError

State = Literal["good", "warning", "fault"]
_MARK = {"good": "ok   ", "warning": "note ", "fault": "FAULT"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` says what to do where it is not good."""

    about: str
    state: State
    text: str
    fix: str = ""


def shown(findings: Sequence[Finding], as_json: bool) -> str:
    """For a terminal, or as JSON."""
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=1)
    return "\n".join(lines(findings))


def require_no_fault(findings: Sequence[Finding]) -> None:
    """Do nothing, if nothing has to be mended.

    Raises:
        UserError: there is a fault.
    """
    faults = [finding.about for finding in findings if finding.state == "fault"]
    if faults:
        raise UserError("something has to be mended first", found=", ".join(faults), remedy="as said above")


def lines(findings: Sequence[Finding]) -> list[str]:
    """For a terminal, one finding after the other."""
    width = max((len(finding.about) for finding in findings), default=0)
    written = []
    for finding in findings:
        written.append(f"{_MARK[finding.state]}  {finding.about:<{width}}  {finding.text}")
        if finding.fix:
            written.append(f"{'':<{width + 9}}to do: {finding.fix}")
    return written
