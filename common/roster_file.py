"""The signed roster as a file: who the hospitals of a consortium are, by the word of its offline key."""

import json
from dataclasses import dataclass

from clinimeta.common.errors import RecordError
from clinimeta.common.secagg.identity import Identity, Roster, sign_roster, verify_roster

FORMAT = "clinimeta roster 1"


@dataclass(frozen=True, slots=True)
class SignedRoster:
    """A roster's canonical bytes, and the consortium's signature; unchecked until `verified`."""

    data: bytes
    signature: bytes

    @staticmethod
    def of(roster: Roster, consortium: Identity) -> "SignedRoster":
        """Sign it, where the consortium's key is."""
        return SignedRoster(roster.to_bytes(), sign_roster(roster, consortium))

    def verified(self, consortium: bytes, at_least: int = 0) -> Roster:
        """The roster.

        Raises:
            RecordError: not signed by this key, older than `at_least`, or no roster.
        """
        return verify_roster(self.data, self.signature, consortium, at_least)

    def unverified(self) -> Roster:
        """The roster, for somebody who does not rely on it (the coordinator).

        Raises:
            RecordError: it is none.
        """
        return Roster.from_bytes(self.data)

    def to_bytes(self) -> bytes:
        """The file's content."""
        values = {"format": FORMAT, "roster": self.data.decode(), "signature": self.signature.hex()}
        return (json.dumps(values, indent=1) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> "SignedRoster":
        """The inverse.

        Raises:
            RecordError: it is no such file.
        """
        try:
            values = json.loads(data)
            if values["format"] != FORMAT:
                raise ValueError
            return SignedRoster(values["roster"].encode(), bytes.fromhex(values["signature"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RecordError("not a signed roster") from None
