"""The cryptographic choices, under one number that the terms name; a new choice is a new number.

Suite 1: SHA-256, HKDF-SHA256 (RFC 5869), X25519 (RFC 7748), Ed25519 (RFC 8032), ChaCha20-Poly1305 (RFC 8439),
AES-256 in counter mode (NIST SP 800-38A), all from the `cryptography` library. A hybrid suite with
ML-KEM-768 would be suite 2.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from clinimeta.common.secagg.packing import pack


@dataclass(frozen=True, slots=True)
class Suite:
    """The primitives of one suite; its name goes into every digest and every derived key."""

    name: str

    def digest(self, label: str, *parts: bytes) -> bytes:
        """H: 32 bytes over the suite's name, the label and the length-prefixed parts."""
        return hashlib.sha256(pack(self.name.encode(), label.encode(), *parts)).digest()

    def derive(self, secret: bytes, salt: bytes, label: str, *names: str) -> bytes:
        """A key of 32 bytes for one purpose between the named sites."""
        info = pack(self.name.encode(), label.encode(), *(name.encode() for name in names))
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)

    def public(self, secret: bytes) -> bytes:
        """The public key of an X25519 secret; 32 bytes each."""
        return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()

    def exchange(self, secret: bytes, public: bytes) -> bytes | None:
        """The secret shared with the holder of `public`, or None where `public` is no usable key."""
        try:
            return X25519PrivateKey.from_private_bytes(secret).exchange(
                X25519PublicKey.from_public_bytes(public)
            )
        except ValueError:  # another length, or a point of small order
            return None

    def is_usable(self, public: bytes) -> bool:
        """Whether a public key gives a shared secret; if with any secret, then with all."""
        return self.exchange(bytes([1]) * 32, public) is not None

    def seal(self, key: bytes, plain: bytes, context: bytes) -> bytes:
        """Encrypt and authenticate, 16 bytes longer. The nonce is zero: a key seals one message, ever."""
        return ChaCha20Poly1305(key).encrypt(bytes(12), plain, context)

    def unseal(self, key: bytes, sealed: bytes, context: bytes) -> bytes | None:
        """The inverse of `seal`, or None where the bytes are not authentic."""
        try:
            return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, context)
        except InvalidTag:
            return None


SUITES: Mapping[int, Suite] = {1: Suite("clinimeta-secagg-1")}
"""Suite number, as the terms have it -> the suite."""
