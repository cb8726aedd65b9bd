"""Masks: AES-256 in counter mode as a stream of 32-bit words, added and subtracted modulo 2^32.

The counter starts at 0; a key makes one mask, ever. The streams of all keys run side by side, block by
block, so that the sum stays in the processor's cache while every mask is applied.
"""

from collections.abc import Callable, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

_BLOCK = 256 * 1024  # bytes
_ZEROS = bytes(_BLOCK)
_SPARE = 15  # what the library wants to have free behind a block


def stream(key: bytes, counter: bytes = bytes(16)) -> CipherContext:
    """A running AES-256-CTR keystream (NIST SP 800-38A); encrypting zeros yields it."""
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()


def keystream_into(key: bytes) -> Callable[[memoryview], None]:
    """A function that fills the buffers given to it, one after the other, with the key's stream."""
    cipher, zeros = stream(key), memoryview(_ZEROS)
    spare = bytearray(_BLOCK + _SPARE)

    def fill(buffer: memoryview) -> None:
        for at in range(0, len(buffer), _BLOCK):
            n = min(_BLOCK, len(buffer) - at)
            cipher.update_into(zeros[:n], spare)
            buffer[at : at + n] = memoryview(spare)[:n]

    return fill


def apply_masks(words: NDArray[np.uint32], added: Sequence[bytes], subtracted: Sequence[bytes]) -> None:
    """Add the masks of some keys (32 bytes each) to `words`, subtract those of others, in place."""
    plus, minus = [stream(key) for key in added], [stream(key) for key in subtracted]
    spare = bytearray(min(_BLOCK, 4 * len(words)) + _SPARE)
    zeros, mask = memoryview(_ZEROS), np.frombuffer(spare, "<u4", count=(len(spare) - _SPARE) // 4)
    step = _BLOCK // 4
    for at in range(0, len(words), step):
        block = words[at : at + step]
        n = len(block)
        for cipher in plus:
            cipher.update_into(zeros[: 4 * n], spare)
            np.add(block, mask[:n], out=block)
        for cipher in minus:
            cipher.update_into(zeros[: 4 * n], spare)
            np.subtract(block, mask[:n], out=block)
