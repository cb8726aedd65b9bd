"""Findings of a check: what was looked at, how it stands, and what to do about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["good", "warning", "fault"]
_RANK = ("good", "warning", "fault")
_MARK = {"good": "ok   ", "warning": "note ", "fault": "FAULT"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` says what to do where it is not good."""

    about: str
    state: State
    text: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


def worst(findings: Sequence[Finding]) -> State:
    """The state of the worst.

    >>> worst([Finding("disk", "good", "3 GiB free"), Finding("clock", "warning", "2 s ahead")])
    'warning'
    """
    return max((finding.state for finding in findings), key=_RANK.index, default="good")


def lines(findings: Sequence[Finding]) -> list[str]:
    """For a terminal, one finding after the other."""
    width = max((len(finding.about) for finding in findings), default=0)
    written = []
    for finding in findings:
        written.append(f"{_MARK[finding.state]}  {finding.about:<{width}}  {finding.text}")
        if finding.fix:
            written.append(f"{'':<{width + 9}}to do: {finding.fix}")
    return written
