"""Records as Flower messages: the one place where common knows Flower.

An envelope's fields become a ConfigRecord, its tensors an ArrayRecord of raw bytes (which Flower cuts
into chunks on the wire). The message type names the kind of record, so that a ClientApp can route it.
"""

from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from clinimeta.common import proofs
from clinimeta.common.codec import Envelope, Field, decode, encode
from clinimeta.common.errors import RecordError
from clinimeta.common.receipts import Checkpoint
from clinimeta.common.records import (
    CalibrationOrder,
    IntroductionOrder,
    MaskingOrder,
    MetaGradientOrder,
    Order,
    QuantisedOrder,
    Reply,
)
from clinimeta.common.secagg.identity import Identity

MESSAGE_TYPES: dict[type[Order], str] = {
    IntroductionOrder: "query.introduction",
    MetaGradientOrder: "train.meta_gradient",
    QuantisedOrder: "train.quantised",
    MaskingOrder: "train.masking",
    CalibrationOrder: "evaluate.calibration",
}
"""Kind of order -> Flower message type."""

_FIELDS, _TENSORS, _STYPE = "fields", "tensors", "clinimeta.safetensors"
PROOF = "proof"
"""Name of the record that holds a hospital's signature, and the newest checkpoint of its ledger."""


def to_flower(record: Order | Reply, identity: Identity | None = None) -> RecordDict:
    """A record as the content of a Flower message; signed, where a hospital's identity is given."""
    envelope = encode(record)
    arrays = {
        name: Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=data)
        for name, data in envelope.tensors.items()
    }
    fields = ConfigRecord(dict(envelope.fields))
    content = RecordDict({_FIELDS: fields})
    if arrays:  # an empty record is the same object in every message, and Flower would send it once only
        content[_TENSORS] = ArrayRecord(arrays)
    if identity is not None:
        content[PROOF] = ConfigRecord({"signature": proofs.sign(envelope, identity)})
    return content


def is_from(content: RecordDict, key: bytes) -> bool:
    """Whether the holder of this public key signed the record in a Flower message's content.

    Raises:
        RecordError: as `envelope_of`.
    """
    proof = content.get(PROOF)
    if not isinstance(proof, ConfigRecord) or set(proof) != {"signature", "checkpoint"}:
        return False
    signature = proof["signature"]
    return isinstance(signature, bytes) and proofs.holds(envelope_of(content), signature, key)


def checkpoint_of(content: RecordDict) -> Checkpoint | None:
    """The checkpoint of the sender's ledger, unchecked; None where there is none.

    Raises:
        RecordError: it is none.
    """
    proof = content.get(PROOF)
    data = proof.get("checkpoint") if isinstance(proof, ConfigRecord) else None
    return Checkpoint.from_bytes(data) if isinstance(data, bytes) else None


def from_flower(content: RecordDict) -> Order | Reply:
    """The record in a Flower message's content.

    Raises:
        RecordError: anything but exactly one record of ours.
    """
    return decode(envelope_of(content))


def envelope_of(content: RecordDict) -> Envelope:
    """The envelope in a Flower message's content, its arrays checked but not yet decoded.

    Raises:
        RecordError: other records than ours, or an array whose header does not fit its bytes.
    """
    if set(content) - {PROOF, _TENSORS} != {_FIELDS}:
        raise RecordError(f"unexpected records in the message: {sorted(content)}")
    fields, tensors = content[_FIELDS], content.get(_TENSORS, ArrayRecord())
    if not isinstance(fields, ConfigRecord) or not isinstance(tensors, ArrayRecord):
        raise RecordError("the message's records have the wrong type")
    for name, array in tensors.items():
        if (
            array.stype != _STYPE
            or array.dtype != str(np.dtype("uint8"))
            or tuple(array.shape) != (len(array.data),)
        ):
            raise RecordError(f"array '{name}' has a header that does not fit its bytes")
    return Envelope(
        cast(dict[str, Field], dict(fields)), {name: array.data for name, array in tensors.items()}
    )
