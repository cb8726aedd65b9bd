"""Who a site is: its Ed25519 key, and the roster of all sites, signed by the consortium off-line."""

import bisect
import functools
import hashlib
import json
from dataclasses import dataclass
from datetime import date
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from clinimeta.common.errors import RecordError

_ROSTER = b"clinimeta roster 1\0"
_FINGERPRINT = b"clinimeta fingerprint 1\0"


class Identity:
    """A name and its Ed25519 key: a site's, or the consortium's. Made where it is used; never sent."""

    __slots__ = ("_key", "name", "public")

    def __init__(self, name: str, secret: bytes) -> None:
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """A signature, 64 bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, public={self.public.hex()})"


@functools.lru_cache(maxsize=1 << 16)  # many sites in one process check the same adverts
def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the holder of this Ed25519 key signed this message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Member:
    """A site in the roster: its public key (32 bytes), from and to which day it holds, both included."""

    site: str
    key: bytes
    valid_from: date
    valid_to: date
    revoked: bool = False

    def is_valid(self, today: date) -> bool:
        """Whether the key holds today."""
        return not self.revoked and self.valid_from <= today <= self.valid_to


@dataclass(frozen=True, slots=True)
class Roster:
    """All sites of a consortium, in order of their names; a later roster has a higher version.

    Raises:
        RecordError: a name or a key twice, names out of order, or an empty or overlong name.
    """

    version: int
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        names = [member.site for member in self.members]
        if names != sorted(set(names)) or not all(0 < len(n) <= 200 and n.isprintable() for n in names):
            raise RecordError("roster: names must be in order, occur once and be printable")
        if len({member.key for member in self.members}) != len(names):
            raise RecordError("roster: two sites have the same key")
        if any(len(member.key) != 32 for member in self.members) or self.version < 0:
            raise RecordError("roster: a key that is not 32 bytes long, or a negative version")

    def member(self, site: str) -> Member | None:
        """The site's entry, or None."""
        at = bisect.bisect_left(self.members, site, key=lambda member: member.site)
        return self.members[at] if at < len(self.members) and self.members[at].site == site else None

    @property
    def digest(self) -> bytes:
        """32 bytes that the terms of every round name: sites with other rosters form no cohort."""
        return hashlib.sha256(_ROSTER + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, keys in hexadecimal, days as YYYY-MM-DD."""
        sites = [
            {
                "site": m.site,
                "key": m.key.hex(),
                "valid_from": m.valid_from.isoformat(),
                "valid_to": m.valid_to.isoformat(),
                "revoked": m.revoked,
            }
            for m in self.members
        ]
        values = {"version": self.version, "sites": sites}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "Roster":
        """The inverse of `to_bytes`; accepts nothing but what it produces.

        Raises:
            RecordError: not a roster, or not in canonical form.
        """
        try:
            values: Any = json.loads(data)
            members = tuple(
                Member(
                    site["site"],
                    bytes.fromhex(site["key"]),
                    date.fromisoformat(site["valid_from"]),
                    date.fromisoformat(site["valid_to"]),
                    bool(site["revoked"]),
                )
                for site in values["sites"]
            )
            roster = Roster(int(values["version"]), members)
            canonical = roster.to_bytes()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise RecordError("not a roster") from None
        if canonical != data:
            raise RecordError("the roster is not in canonical form")
        return roster


def sign_roster(roster: Roster, consortium: Identity) -> bytes:
    """The consortium's signature (64 bytes), made where the consortium's key is: off-line."""
    return consortium.sign(_ROSTER + roster.to_bytes())


def verify_roster(data: bytes, signature: bytes, consortium: bytes, at_least: int = 0) -> Roster:
    """The roster in `data`, if the consortium (public key) signed it and it is no older than known.

    Raises:
        RecordError: another signature, a version under `at_least`, or not a canonical roster.
    """
    if not is_signed(consortium, _ROSTER + data, signature):
        raise RecordError("the roster is not signed by the consortium's key")
    roster = Roster.from_bytes(data)
    if roster.version < at_least:
        raise RecordError(f"the roster has version {roster.version}; version {at_least} is known already")
    return roster


def fingerprint(public: bytes) -> str:
    """A public key as eight groups of five digits, which two people can compare on the telephone.

    >>> fingerprint(bytes(32))
    '10709 48025 23745 76317 07951 11134 52961 42443'
    """
    digest = hashlib.sha512(_FINGERPRINT + public).digest()
    groups = [int.from_bytes(digest[i : i + 8], "big") % 100_000 for i in range(0, 64, 8)]
    return " ".join(f"{group:05d}" for group in groups)
