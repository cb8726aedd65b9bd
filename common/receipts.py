"""A hospital's checkpoint of its ledger, and the coordinator's receipt for it: who said what was on record.

The hospital signs the hash of each record; what it sends carries the newest one. The coordinator
counter-signs it. So neither can later deny or rewrite what had left by then without the other's key.
"""

import hashlib
import struct
from dataclasses import dataclass

from clinimeta.common.errors import RecordError
from clinimeta.common.secagg.identity import Identity, is_signed

_GENESIS, _CHECKPOINT = b"clinimeta ledger 1\0", b"clinimeta checkpoint 1\0"
_RECEIPT = b"clinimeta receipt 1\0"
_LAYOUT = struct.Struct(">Q32s64s")
CHECKPOINT_BYTES = _LAYOUT.size


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The hospital's word: record `number` (from 1) has this hash; all before it are chained to it."""

    number: int
    hash: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """104 bytes."""
        return _LAYOUT.pack(self.number, self.hash, self.signature)

    @staticmethod
    def from_bytes(data: bytes) -> "Checkpoint":
        """The inverse.

        Raises:
            RecordError: another length.
        """
        if len(data) != CHECKPOINT_BYTES:
            raise RecordError("a checkpoint of another length")
        return Checkpoint(*_LAYOUT.unpack(data))

    def is_of(self, key: bytes) -> bool:
        """Whether the holder of this key signed it."""
        return is_signed(key, _message(_CHECKPOINT, key, self.number, self.hash), self.signature)


def genesis(key: bytes) -> bytes:
    """What the first record of the ledger of this key's holder follows."""
    return hashlib.sha256(_GENESIS + key).digest()


def checkpoint(number: int, digest: bytes, identity: Identity) -> Checkpoint:
    """The hospital's own."""
    message = _message(_CHECKPOINT, identity.public, number, digest)
    return Checkpoint(number, digest, identity.sign(message))


def receipt(of: Checkpoint, site_key: bytes, coordinator: Identity) -> bytes:
    """The coordinator's counter-signature, 64 bytes."""
    return coordinator.sign(_message(_RECEIPT, site_key, of.number, of.hash))


def is_receipt(signature: bytes, of: Checkpoint, site_key: bytes, coordinator_key: bytes) -> bool:
    """Whether the coordinator counter-signed this checkpoint of this hospital's."""
    return is_signed(coordinator_key, _message(_RECEIPT, site_key, of.number, of.hash), signature)


def _message(what: bytes, site_key: bytes, number: int, digest: bytes) -> bytes:
    return what + site_key + number.to_bytes(8, "big") + digest
