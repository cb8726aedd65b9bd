"""Shamir's secret sharing (CACM 1979) of 32-byte secrets, over the integers modulo a prime.

The prime is the first over 2^256, so that any 32 bytes are one element. Plain Python integers are fast
enough: 200 holders cost a few milliseconds.
"""

import functools
from collections.abc import Callable, Sequence

PRIME = 2**256 + 297
SHARE_BYTES = 33

RandomBytes = Callable[[int], bytes]


def split(secret: bytes, threshold: int, points: Sequence[int], random_bytes: RandomBytes) -> list[bytes]:
    """One share (33 bytes) for each point; any `threshold` of them give the secret, fewer tell nothing.

    `points` are distinct and not 0. Coefficients are 48 random bytes modulo the prime: uniform to 2^-127.
    """
    assert len(secret) == 32
    assert 0 < threshold <= len(points)
    noise = random_bytes(48 * (threshold - 1))
    coefficients = [int.from_bytes(noise[i : i + 48], "big") % PRIME for i in range(0, len(noise), 48)]
    constant = int.from_bytes(secret, "big")
    shares = []
    for x in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * x % PRIME
        shares.append(((value + constant) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


@functools.lru_cache(maxsize=1024)
def weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at 0: the same for every secret that these holders share, so computed once."""
    found = []
    for x in points:
        above, below = 1, 1
        for other in points:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(found)


def combine(points: tuple[int, ...], shares: Sequence[bytes]) -> bytes | None:
    """The secret (32 bytes) from as many shares as the threshold asks for.

    Wrong shares give a wrong secret, which the caller must be able to recognise, or None where it would
    be longer than 32 bytes.
    """
    pairs = zip(weights(points), shares, strict=True)
    value = sum(weight * int.from_bytes(share, "big") for weight, share in pairs) % PRIME
    return value.to_bytes(32, "big") if value < 2**256 else None
