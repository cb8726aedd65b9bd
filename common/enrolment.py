"""What a hospital sends to be enrolled, and the signatures that show that it holds the keys."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from clinimeta.common.secagg.identity import Identity, is_signed

_ENROL, _SAID = b"clinimeta enrolment 1\0", b"clinimeta said 1\0"
CLOCKS_APART = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A hospital's public keys beside its token: its node's (PEM, P-384) and its own (Ed25519, 32 bytes)."""

    token: str = field(repr=False)
    node_key: bytes
    identity_key: bytes
    software: str

    @property
    def message(self) -> bytes:
        """What both keys sign."""
        parts = [self.token.encode(), self.node_key, self.identity_key, self.software.encode()]
        return _ENROL + b"".join(hashlib.sha256(part).digest() for part in parts)


Saying = Literal["status", "started", "proposal", "verdict"]


@dataclass(frozen=True, slots=True)
class Said:
    """What a known hospital says: `status` asks how it stands, `started` tells of its SuperNode's start.

    `proposal` asks for a plan, `verdict` says what would be answered to one. `at` is its clock (ISO 8601,
    UTC). `facts` goes with it: `Facts` as JSON or nothing, a plan's digest, a `Verdict` as JSON.
    """

    what: Saying
    identity_key: bytes
    at: str
    facts: str = ""

    @property
    def message(self) -> bytes:
        """What the hospital's key signs."""
        return _SAID + f"{self.what} {self.at} {self.facts}\0".encode() + self.identity_key


class Facts(BaseModel):
    """What a hospital tells of itself for the operator's screens; nothing of any patient.

    `policy` is the digest of the policy in force, `budget_left` the epsilon that all studies together may
    still spend on one patient here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    software: Annotated[str, StringConstraints(max_length=200)]
    policy: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    budget_left: Annotated[float, Field(ge=0)]


class Verdict(BaseModel):
    """What a hospital's policy would say to a plan: codes of refusals, none where it would answer.

    `checkpoint` is of the ledger's record that says so, hexadecimal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    codes: Annotated[tuple[Annotated[str, StringConstraints(max_length=60)], ...], Field(max_length=40)]
    checkpoint: Annotated[str, StringConstraints(pattern="^[0-9a-f]+$", max_length=400)]


def prove(wanted: Wanted, node: ec.EllipticCurvePrivateKey, identity: Identity) -> tuple[bytes, bytes]:
    """The signatures of the node's key and of the hospital's own."""
    return node.sign(wanted.message, ec.ECDSA(hashes.SHA384())), identity.sign(wanted.message)


def proves(wanted: Wanted, node_proof: bytes, identity_proof: bytes) -> bool:
    """Whether whoever sent this holds both keys, and they are of the right kinds."""
    if len(wanted.identity_key) != 32:
        return False
    try:
        key = serialization.load_pem_public_key(wanted.node_key)
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            return False
        key.verify(node_proof, wanted.message, ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature, TypeError):
        return False
    return is_signed(wanted.identity_key, wanted.message, identity_proof)


def is_said(said: Said, proof: bytes, now: datetime) -> bool:
    """Whether the hospital itself says so, just now.

    Raises:
        ValueError: its time cannot be read.
    """
    apart = abs(datetime.fromisoformat(said.at) - now)
    return apart <= CLOCKS_APART and is_signed(said.identity_key, said.message, proof)
