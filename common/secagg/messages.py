"""What travels in the five phases, as frozen plain values: the coordinator's requests, the sites' answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from clinimeta.common.errors import RecordError
from clinimeta.common.secagg.packing import decode, encode, pack, unpack
from clinimeta.common.secagg.terms import RoundKey

PHASES = ("advert", "shares", "masked", "confirm", "unmask")
"""The phases, in order; each is answered once."""


@dataclass(frozen=True, slots=True)
class AdvertRequest:
    """Phase 1: will you take part under these terms (canonical bytes)?"""

    terms: bytes


@dataclass(frozen=True, slots=True)
class Advert:
    """Yes: two X25519 public keys for this attempt only (32 bytes), a nonce (16), and an Ed25519 signature
    over H("advert", td, site, channel_key, mask_key, nonce).
    """

    site: str
    channel_key: bytes
    mask_key: bytes
    nonce: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SharesRequest:
    """Phase 2: these are all who take part, in order of their names."""

    key: RoundKey
    adverts: tuple[Advert, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """To each neighbour its sealed shares (82 bytes) of two secrets; `commitment` is H("b", T1, site, b)."""

    key: RoundKey
    site: str
    sealed: Mapping[str, bytes]
    commitment: bytes


@dataclass(frozen=True, slots=True)
class MaskedRequest:
    """Phase 3: who has shared (in order of name), and what your neighbours among them sealed for you.

    The model travels beside it; the site takes its digest itself.
    """

    key: RoundKey
    members: tuple[str, ...]
    sealed: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Masked:
    """The site's vector and columns under masks: `size` 32-bit words, little endian."""

    key: RoundKey
    site: str
    words: bytes


@dataclass(frozen=True, slots=True)
class ConfirmRequest:
    """Phase 4: these are added up, in order of their names."""

    key: RoundKey
    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confirm:
    """The site's signature over H("confirm", T3, site): it sees this model, these members and survivors."""

    key: RoundKey
    site: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class UnmaskRequest:
    """Phase 5: these have confirmed (site -> signature)."""

    key: RoundKey
    signatures: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Unmask:
    """Shares (33 bytes) of the survivors' self masks, and of the mask keys of those who dropped out."""

    key: RoundKey
    site: str
    self_shares: Mapping[str, bytes]
    key_shares: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, with a code of `refusal.CODES`, and to which phase's request."""

    site: str
    phase: str
    code: str
    sentence: str


Request: TypeAlias = AdvertRequest | SharesRequest | MaskedRequest | ConfirmRequest | UnmaskRequest
Answer: TypeAlias = Advert | Shares | Masked | Confirm | Unmask

_REQUESTS = (AdvertRequest, SharesRequest, MaskedRequest, ConfirmRequest, UnmaskRequest)
_ANSWERS = (Advert, Shares, Masked, Confirm, Unmask)
_KINDS: dict[str, type[Request | Answer | Refusal]] = {
    kind.__name__: kind for kind in (*_REQUESTS, *_ANSWERS, Refusal)
}


def phase_of(request: Request) -> str:
    """Which phase a request opens."""
    return PHASES[_REQUESTS.index(type(request))]


def kind_of_answer(phase: str) -> type[Answer]:
    """What answers a phase's request."""
    return _ANSWERS[PHASES.index(phase)]


def to_bytes(message: Request | Answer | Refusal) -> bytes:
    """A message as one byte string: the name of its kind, and its fields."""
    return pack(type(message).__name__.encode(), encode(message))


def from_bytes(data: bytes) -> Request | Answer | Refusal:
    """The inverse of `to_bytes`; accepts nothing but what it produces.

    Raises:
        RecordError: not a message, or not in canonical form.
    """
    parts = unpack(data)
    kind = _KINDS.get(parts[0].decode(errors="replace")) if len(parts) == 2 else None
    if kind is None:
        raise RecordError("not a message of secure aggregation")
    return decode(kind, parts[1])
