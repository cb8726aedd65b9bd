"""What can go wrong, ordered by who can act.

ClinimetaError
├── UserError               the person at the keyboard: says where, what was found, what to do
│   ├── StudyError          a study file or one of its keys
│   ├── DataError           a table: file, row, column
│   ├── MissingDataError    a data set that is neither here nor downloadable
│   ├── RunDirError         a run directory that is missing, foreign or half written
│   ├── BudgetFileError     a privacy budget's file: missing, foreign, damaged, or open to others
│   ├── LedgerFileError     the outbound ledger's file: missing, foreign, damaged, or no room for it
│   └── ApprovalError       a plan to approve or withdraw: none such, or its record is damaged
├── BudgetError             the hospital: an answer that its privacy budget does not allow
│   ├── BudgetSpentError    it would cost more than was promised to the patients
│   └── BudgetConflictError it is not what was recorded under this name
├── QuorumError             the hospitals: too few of them answered, names them
├── AttemptError            the hospitals: too few of them left to open a sum; a new attempt may do
├── RecordError             the peer: bytes that are not a record of ours
├── BoundError              us: a vector that does not fit the bound that was agreed
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


class BudgetFileError(UserError):
    """The file of a site's privacy budget cannot be used; nothing may be released without it."""


class LedgerFileError(UserError):
    """The file of a site's outbound ledger cannot be used; nothing may leave without it."""


class ApprovalError(UserError):
    """A plan cannot be found, approved or withdrawn as asked, or the record of it cannot be used."""


class BudgetError(ClinimetaError):
    """A site's privacy budget does not allow this answer; nothing was spent."""


class BudgetSpentError(BudgetError):
    """The answer would cost more than what is left. `scope` is "study" or "lifetime"."""

    def __init__(self, scope: str, spent: float, would_be: float, epsilon: float, delta: float) -> None:
        self.scope, self.spent, self.would_be = scope, spent, would_be
        self.epsilon, self.delta = epsilon, delta
        whose = "of this study" if scope == "study" else "of this site, over all studies,"
        super().__init__(
            f"the privacy budget {whose} is spent: epsilon {spent:.3f} so far, {would_be:.3f} with this "
            f"answer, {epsilon:g} allowed at delta {delta:g}"
        )


class BudgetConflictError(BudgetError):
    """Something else was recorded under this name: another answer, or another promise."""


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


class AttemptError(ClinimetaError):
    """Too few hospitals are left in secure aggregation; `dropped` says who went in which phase, and why.

    Before `unmask` the same round may be tried again, as a new attempt with new keys. In `unmask` it may
    not: those who have answered will not open this round a second time, so take a new round.
    """

    def __init__(self, phase: str, present: int, needed: int, dropped: Mapping[str, tuple[str, str]]) -> None:
        self.phase, self.present, self.needed, self.dropped = phase, present, needed, dict(dropped)
        who = "; ".join(f"{site}: {when}, {why}" for site, (when, why) in sorted(dropped.items()))
        then = "a new round" if phase == "unmask" else "a new attempt"
        super().__init__(
            f"secure aggregation stopped in phase {phase}: {present} hospitals left, {needed} needed "
            f"({who or 'nobody else is there'}); begin {then}"
        )

    @property
    def may_retry(self) -> bool:
        """Whether a new attempt of the same round can succeed."""
        return self.phase != "unmask"


class RecordError(ClinimetaError):
    """Bytes that a peer sent are not the record that they claim to be."""


class BoundError(ClinimetaError):
    """A vector is not finite, over the bound that was agreed, or of another shape; names no value."""


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
