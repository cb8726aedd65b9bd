"""Keys and a roster for simulated hospitals, as a consortium would hand them out."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date

from clinimeta.client.site import Site
from clinimeta.common.plan import Plan
from clinimeta.common.secagg.identity import Identity, Member, Roster
from clinimeta.common.secagg.journal import MemoryJournal
from clinimeta.common.secagg.policy import Policy
from clinimeta.common.secagg.site import Site as Party


@dataclass(frozen=True, slots=True)
class Consortium:
    """The roster, and the hospitals with their keys, policies and (forgetful) journals."""

    roster: Roster
    sites: Mapping[str, Site]


def found(sites: Mapping[str, Site], plan: Plan) -> Consortium:
    """Give every hospital fresh keys, and let each approve this plan."""
    keys = {name: Identity(name, secrets.token_bytes(32)) for name in sorted(sites)}
    members = tuple(Member(name, key.public, date.min, date.max) for name, key in keys.items())
    roster = Roster(1, members)
    approved = frozenset({hashlib.sha256(plan.canonical()).digest()})
    policy = Policy(plans=approved, min_cohort=plan.protection.min_cohort)
    parties = {
        name: Party(keys[name], roster, policy, MemoryJournal(), date.today, site.rounding_seed)
        for name, site in sites.items()
    }
    return Consortium(
        roster,
        {
            name: replace(site, party=parties[name], noise_seed=noise_seed(plan))
            for name, site in sites.items()
        },
    )


def noise_seed(plan: Plan) -> bytes:
    """Simulated noise repeats itself, as all randomness of a simulation does."""
    return hashlib.sha256(f"simulated noise {plan.seed}".encode()).digest()
