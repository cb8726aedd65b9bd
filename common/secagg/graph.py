"""Who shares masks with whom: everybody with everybody, or each site with `degree` neighbours.

The sparse form (Bell et al., CCS 2020) is a Harary graph over an order that everybody computes from the
adverts. A coordinator that picks the participants can influence it, so it protects against a curious
coordinator only; it is meant for simulations and for cohorts over 256 sites.
"""

from collections.abc import Iterable

from clinimeta.common.secagg.suite import Suite


def order(suite: Suite, t1: bytes, names: Iterable[str]) -> tuple[str, ...]:
    """The sites in an order that nobody knows before all adverts are there."""
    return tuple(sorted(names, key=lambda name: suite.digest("graph", t1, name.encode())))


def neighbours(name: str, ordered: tuple[str, ...], degree: int) -> tuple[str, ...]:
    """The neighbours of a site, in order of their names; `degree` is even, 0 stands for all others.

    >>> neighbours("b", ("a", "b", "c", "d", "e"), 2)
    ('a', 'c')
    """
    n = len(ordered)
    if degree == 0 or degree >= n - 1:
        return tuple(sorted(other for other in ordered if other != name))
    at = ordered.index(name)
    steps = [step for far in range(1, degree // 2 + 1) for step in (-far, far)]
    return tuple(sorted(ordered[(at + step) % n] for step in steps))
