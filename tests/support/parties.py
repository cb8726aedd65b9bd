"""A consortium in one process for the tests of secure aggregation: sites, roster, terms, all from a seed."""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np

from clinimeta.common.secagg.identity import Identity, Member, Roster
from clinimeta.common.secagg.journal import MemoryJournal
from clinimeta.common.secagg.policy import Policy
from clinimeta.common.secagg.ring import Contribution, Ring, rounding_key
from clinimeta.common.secagg.site import Site
from clinimeta.common.secagg.terms import Column, Terms

TODAY = date(2026, 11, 23)
PLAN = hashlib.sha256(b"plan").digest()
MODEL = hashlib.sha256(b"model").digest()
DIM = 5
COLUMNS = (Column("tasks", 64.0), Column("query_loss", 1000.0))
NAMES = ("bern", "graz", "köln", "lund", "oslo", "riga", "ulm", "wien", "zagreb", "zürich")


def from_seed(*name: object) -> Callable[[int], bytes]:
    """Random bytes that are the same in every run: SHA-256 in counter mode over a name."""
    counter = itertools.count()

    def random_bytes(n: int) -> bytes:
        blocks = (hashlib.sha256(repr((name, next(counter))).encode()).digest() for _ in range(-(-n // 32)))
        return b"".join(blocks)[:n]

    return random_bytes


def identity(name: str) -> Identity:
    return Identity(name, from_seed("identity", name)(32))


def names_of(n: int) -> tuple[str, ...]:
    return NAMES[:n] if n <= len(NAMES) else tuple(f"site-{i:04d}" for i in range(n))


def roster_of(names: Sequence[str]) -> Roster:
    known = [Member(n, identity(n).public, date(2026, 1, 1), date(2027, 12, 31)) for n in sorted(names)]
    return Roster(1, tuple(known))


def terms_of(roster: Roster, **changes: Any) -> Terms:
    parts: dict[str, Any] = {
        "suite": 1,
        "run": "run",
        "round": 7,
        "attempt": 0,
        "dim": DIM,
        "bound": 2.0,
        "columns": COLUMNS,
        "n_max": len(roster.members),
        "min_cohort": 3,
        "threshold": "two_thirds",
        "degree": 0,
        "roster_digest": roster.digest,
        "plan_digest": PLAN,
        "public": (),
    }
    return Terms(**{**parts, **changes})


POLICY = Policy(frozenset({PLAN}), sparse_from=8, min_degree=4)


def site_of(name: str, roster: Roster, kind: Any = Site, **changes: Any) -> Any:
    parts = {
        "identity": identity(name),
        "roster": roster,
        "policy": POLICY,
        "journal": MemoryJournal(),
        "today": lambda: TODAY,
        "rounding_seed": from_seed("rounding", name)(32),
        "random_bytes": from_seed("secrets", name),
    }
    return kind(**{**parts, **changes})


def consortium(n: int, kind: Any = Site, **changes: Any) -> tuple[Roster, dict[str, Any]]:
    """A roster of n sites, and the sites."""
    roster = roster_of(names_of(n))
    return roster, {member.site: site_of(member.site, roster, kind, **changes) for member in roster.members}


def contribution_of(name: str, dim: int = DIM, round_number: int = 7) -> Contribution:
    rng = np.random.default_rng(list(f"{name}/{round_number}".encode()))
    vector = rng.uniform(-2, 2, dim).astype(np.float32)
    return Contribution(vector, {"tasks": 4.0, "query_loss": float(rng.uniform(0, 9))})


def quantised(terms: Terms, site: Any, contribution: Contribution) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """What the site adds, without masks."""
    key = rounding_key(site.rounding_seed, terms.run, terms.round, site.name)
    return Ring.of(terms).quantise(contribution, key)


def plain_sum(
    terms: Terms, sites: Mapping[str, Any], given: Mapping[str, Contribution], survivors: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The run without masks."""
    total = np.zeros(Ring.of(terms).size, np.uint32)
    for name in survivors:
        total += quantised(terms, sites[name], given[name])
    return total
