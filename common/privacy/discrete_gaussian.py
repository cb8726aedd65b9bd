"""Noise from a secret key: discrete Gaussians drawn by rejection from an AES-256 keystream.

Canonne, Kamath, Steinke (NeurIPS 2020), algorithm 3, for many numbers at once: propose a discrete
Laplace, accept with a probability that makes it Gaussian. Theirs is exact in rational arithmetic; here a
proposal and its acceptance come from 53 random bits each in float64, so probabilities are right to about
2^-53 and proposals end at 36.7 scales. That is not proof against an attacker who tells float64 from the
reals, and far below every delta that anybody promises.
"""

import math

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jaxtyping import Int, UInt64

KEY_BYTES = 32
_BLOCK = 1 << 15
"""Proposals at a time: their arrays stay in the processor's cache."""
_LARGEST = 2.0**40
"""Of sigma: beyond it 53 bits are too coarse."""


class Keystream:
    """Random bits that are a function of a 32-byte key: AES-256 in counter mode.

    A key serves once: the same key gives the same noise, which whoever sees two results can subtract.

    Raises:
        ValueError: the key does not have 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes, expected {KEY_BYTES}")
        # The counter starts at 0, which is sound because a key serves one stream only.
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> UInt64[np.ndarray, " count"]:
        """The next `count` 64-bit words."""
        stream = bytearray(8 * count)
        self._cipher.update_into(bytes(8 * count), stream)
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)

    def __repr__(self) -> str:
        """Not the key."""
        return "Keystream(...)"


def subkey(key: bytes, purpose: str) -> bytes:
    """A key of its own for each thing that a reserved answer needs: its noise, its rounding.

    >>> subkey(bytes(32), "noise") == subkey(bytes(32), "rounding")
    False
    """
    info = f"clinimeta privacy 1|{purpose}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)


def discrete_gaussian(key: bytes, sigma: float, count: int) -> Int[np.ndarray, " count"]:
    """`count` independent discrete Gaussians, int64: P(x) is proportional to exp(-x^2 / (2 sigma^2)).

    Their variance is at most sigma^2, and all but equal to it from sigma = 1 on.

    Raises:
        ValueError: the key does not have 32 bytes, or sigma is not between 0 and 2^40.
    """
    if not 0 < sigma <= _LARGEST:
        raise ValueError(f"sigma is {sigma}, expected over 0 and at most 2^40")
    bits, drawn = Keystream(key), np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        accepted = _proposals(bits, sigma)[: count - done]
        drawn[done : done + len(accepted)] = accepted
        done += len(accepted)
    return drawn


def _proposals(bits: Keystream, sigma: float) -> Int[np.ndarray, " accepted"]:
    """The accepted ones of a block of proposals (about three quarters)."""
    scale = math.floor(sigma) + 1
    words = bits.words(2 * _BLOCK)
    first, second = words[:_BLOCK], words[_BLOCK:]
    size = np.floor(np.log(_uniform(first)) * -scale)  # geometric: P(size >= k) = exp(-k / scale)
    negative = (first & np.uint64(1)).astype(bool)  # a bit that the uniform number does not use
    away = (size - sigma * sigma / scale) / sigma
    accept = np.log(_uniform(second)) <= -0.5 * away * away
    accept &= ~(negative & (size == 0))  # or 0 would come up twice as often
    signed = np.where(negative, -size, size)
    kept: Int[np.ndarray, " accepted"] = signed[accept].astype(np.int64)
    return kept


def _uniform(words: UInt64[np.ndarray, " count"]) -> np.ndarray:
    """Uniform in (0, 1], from the upper 53 bits."""
    upper: np.ndarray = (words >> np.uint64(11)).astype(np.float64)
    return (upper + 1.0) * 2.0**-53
