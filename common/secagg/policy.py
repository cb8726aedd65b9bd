"""What a site lets happen to its data, whatever the coordinator says: from the site's own file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """A site's own limits.

    Args:
        plans: SHA-256 digests of the plans (or studies) that the site has approved.
        min_cohort: the fewest sites, itself among them, whose sum may be opened.
        suites: numbers of the suites that it trusts.
        public: names of what may leave it in clear beside the masked vector.
        max_size: the most numbers in a vector, columns included.
        sparse_from: from how many sites on masks need not be shared with everybody.
        min_degree: with how many neighbours they must be shared then.
    """

    plans: frozenset[bytes]
    min_cohort: int = 3
    suites: frozenset[int] = frozenset({1})
    public: frozenset[str] = frozenset()
    max_size: int = 100_000_000
    sparse_from: int = 257
    min_degree: int = 94
