"""What can go wrong, ordered by who can act.

ClinimetaError
├── UserError               the person at the keyboard: says where, what was found, what to do
│   ├── StudyError          a study file or one of its keys
│   ├── DataError           a table: file, row, column
│   ├── MissingDataError    a data set that is neither here nor downloadable
│   └── RunDirError         a run directory that is missing, foreign or half written
├── QuorumError             the hospitals: too few of them answered, names them
├── RecordError             the peer: bytes that are not a record of ours
├── GateError               the consortium: steps had to be undone too often
└── NumericalError          us: training left the finite numbers

A hospital that says no gives an answer (`records.Refusal`); it does not raise.
"""

import difflib
from collections.abc import Iterable, Mapping


class ClinimetaError(Exception):
    """Any error that clinimeta raises on purpose."""


class UserError(ClinimetaError):
    """Something the person at the keyboard can mend.

    `what` is one sentence; `where` names the file, row, column or key; `found` never holds a patient's
    value, only its kind; `expected` and `remedy` say what would have been right and what to do now.
    """

    def __init__(
        self, what: str, *, where: str = "", found: str = "", expected: str = "", remedy: str = ""
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.found = what, where, found
        self.expected, self.remedy = expected, remedy

    def details(self) -> dict[str, str]:
        """The filled-in parts, in the order in which they are read.

        >>> UserError("no such file", where="cases.csv", remedy="check the path").details()
        {'where': 'cases.csv', 'what to do': 'check the path'}
        """
        parts = {
            "where": self.where,
            "found": self.found,
            "expected": self.expected,
            "what to do": self.remedy,
        }
        return {name: text for name, text in parts.items() if text}

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {name}: {text}" for name, text in self.details().items())])


class StudyError(UserError):
    """A study file cannot be read, or one of its keys is wrong."""


class DataError(UserError):
    """A table does not fit the study: names file, row and column, never a value."""


class MissingDataError(UserError):
    """A data set is neither where it was looked for nor downloadable."""


class RunDirError(UserError):
    """A run directory is missing, belongs to something else, or cannot be used as asked."""


class QuorumError(ClinimetaError):
    """Too few hospitals answered, however often they were asked; `missing` says who, and why."""

    def __init__(self, round_number: int, accepted: int, quorum: int, missing: Mapping[str, str]) -> None:
        self.round_number, self.accepted, self.quorum = round_number, accepted, quorum
        self.missing = dict(missing)
        reasons = sorted({*missing.values()})
        who = "; ".join(
            f"{reason}: {', '.join(sorted(site for site, why in missing.items() if why == reason))}"
            for reason in reasons
        )
        super().__init__(
            f"round {round_number}: {accepted} usable answers, {quorum} needed "
            f"({who or 'nobody else is there'})"
        )


class RecordError(ClinimetaError):
    """Bytes that a peer sent are not the record that they claim to be."""


class GateError(ClinimetaError):
    """The hold-out gate undid more outer steps than the study allows: somebody should look why."""


class NumericalError(ClinimetaError):
    """A computation of ours left the finite numbers."""


def nearest(name: str, known: Iterable[str]) -> str:
    """One sentence that helps with a misspelt name.

    >>> nearest("mamel", ["maml", "protonet"])
    "did you mean 'maml'? there is: maml, protonet"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}there is: {', '.join(names)}"
