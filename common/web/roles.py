"""Who may do what in a console."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What an account is for."""

    OPERATOR = "operator"
    RESEARCHER = "researcher"
    AUDITOR = "auditor"
    VIEWER = "viewer"


class May(StrEnum):
    """What a screen or an action asks of whoever wants it."""

    SELF = "self"  # one's own account
    READ_OWN = "read own site"
    READ = "read"
    AUDIT = "audit"
    STUDY = "run studies"
    OPERATE = "operate"


PERMISSIONS: Final[dict[Role, frozenset[May]]] = {
    Role.OPERATOR: frozenset(May),
    Role.RESEARCHER: frozenset({May.SELF, May.READ_OWN, May.READ, May.STUDY}),
    Role.AUDITOR: frozenset({May.SELF, May.READ_OWN, May.READ, May.AUDIT}),
    Role.VIEWER: frozenset({May.SELF, May.READ_OWN}),
}
"""An auditor reads all and changes nothing; a viewer sees the own hospital only."""

WORDS: Final[dict[Role, str]] = {
    Role.OPERATOR: "runs the federation: everything",
    Role.RESEARCHER: "starts and stops studies, reads everything but the audit",
    Role.AUDITOR: "reads everything, changes nothing",
    Role.VIEWER: "sees one hospital",
}


@dataclass(frozen=True, slots=True)
class Who:
    """Somebody who is signed in; `site` is the hospital that a viewer sees."""

    name: str
    role: Role
    site: str = ""

    def may(self, what: May) -> bool:
        """Whether the role lets them."""
        return what in PERMISSIONS[self.role]

    def sees(self, site: str) -> bool:
        """Whether they may look at this hospital."""
        return self.may(May.READ) or (self.may(May.READ_OWN) and self.site == site)
