"""A hospital's signature on its answer: whoever knows a message's id can answer it, but not in its name."""

import hashlib
import json

from clinimeta.common.codec import Envelope
from clinimeta.common.secagg.identity import Identity, is_signed

_REPLY = b"clinimeta reply 1\0"


def message_of(envelope: Envelope) -> bytes:
    """What is signed: every field, a fresh nonce among them, and the SHA-256 of every tensor's bytes."""
    fields = json.dumps(envelope.fields, sort_keys=True, separators=(",", ":"), default=bytes.hex)
    tensors = {name: hashlib.sha256(data).hexdigest() for name, data in envelope.tensors.items()}
    names = json.dumps(tensors, sort_keys=True, separators=(",", ":"))
    return _REPLY + hashlib.sha256(fields.encode()).digest() + hashlib.sha256(names.encode()).digest()


def sign(envelope: Envelope, identity: Identity) -> bytes:
    """The hospital's signature, 64 bytes."""
    return identity.sign(message_of(envelope))


def holds(envelope: Envelope, signature: bytes, key: bytes) -> bool:
    """Whether the holder of this public key signed this answer."""
    return is_signed(key, message_of(envelope), signature)
