"""The coordinator puts secrets together from shares, and does so although some shares are wrong."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from clinimeta.common.secagg.shamir import SHARE_BYTES, combine

_TRIES = 500


def recover(
    shares: Mapping[int, bytes],
    threshold: int,
    is_right: Callable[[bytes], bool],
    distrusted: set[int] | None = None,
) -> bytes | None:
    """A secret from `shares` (point -> share), or None where too few of them are right.

    Tries up to 500 sets of `threshold` holders. Where the first set fails and another succeeds,
    `distrusted` learns whose shares were wrong, and later secrets are tried without them first.
    """
    distrusted = set() if distrusted is None else distrusted
    usable = {point: share for point, share in shares.items() if len(share) == SHARE_BYTES}
    if len(usable) < threshold:
        return None
    ranked = sorted(usable, key=lambda point: (point in distrusted, point))
    for tried, chosen in enumerate(_sets(ranked, threshold)):
        secret = combine(chosen, [usable[point] for point in chosen])
        if secret is not None and is_right(secret):
            if tried:
                distrusted |= _wrong(usable, chosen, secret)
            return secret
    return None


def _sets(points: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """The first `size` points; then all sets if they are few, else as many of chance as may be tried."""
    yield tuple(sorted(points[:size]))
    few = list(itertools.islice(itertools.combinations(points, size), _TRIES))
    if len(few) < _TRIES:
        yield from (tuple(sorted(chosen)) for chosen in few[1:])
        return
    for i in range(_TRIES):
        shuffled = sorted(points, key=lambda point: hashlib.sha256(f"{i}:{point}".encode()).digest())
        yield tuple(sorted(shuffled[:size]))


def _wrong(shares: Mapping[int, bytes], chosen: tuple[int, ...], secret: bytes) -> set[int]:
    """Holders outside a right set whose share does not fit in: each is put in the place of one of the set."""
    others = [point for point in shares if point not in chosen]
    return {
        point
        for point in others
        if combine(mixed := tuple(sorted((*chosen[1:], point))), [shares[p] for p in mixed]) != secret
    }
