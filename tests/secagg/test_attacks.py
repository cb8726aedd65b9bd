"""An active coordinator against one hospital: each attack opens its vector where one protection is off, and
gets a refusal where it is on. The first half shows that the second means something.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from mutants import site_without
from parties import (
    MODEL,
    PLAN,
    TODAY,
    consortium,
    contribution_of,
    from_seed,
    identity,
    names_of,
    quantised,
    roster_of,
    site_of,
    terms_of,
)

from clinimeta.common.secagg.journal import MemoryJournal
from clinimeta.common.secagg.masks import apply_masks
from clinimeta.common.secagg.messages import (
    Advert,
    AdvertRequest,
    ConfirmRequest,
    MaskedRequest,
    Refusal,
    SharesRequest,
    UnmaskRequest,
    phase_of,
)
from clinimeta.common.secagg.policy import Policy
from clinimeta.common.secagg.protocol import one_round, run
from clinimeta.common.secagg.recovery import recover
from clinimeta.common.secagg.ring import Contribution
from clinimeta.common.secagg.session import Circle, advert_message
from clinimeta.common.secagg.shamir import combine
from clinimeta.common.secagg.site import Site
from clinimeta.common.secagg.terms import THRESHOLDS, RoundKey, Terms

VICTIM = "bern"
DEAD = Contribution(np.zeros(5, np.float32), {"tasks": 0.0, "query_loss": 0.0})


class Stopped(Exception):  # noqa: N818 (the attack failed, as it should)
    """A site has refused."""


def insist(answer: Any) -> Any:
    if isinstance(answer, Refusal):
        raise Stopped(answer.code)
    return answer


@dataclass(frozen=True)
class Puppet:
    """A participant whose secrets the coordinator has."""

    advert: Advert
    channel_secret: bytes
    mask_secret: bytes


def puppet(name: str, terms: Terms, signs: bool) -> Puppet:
    draw, suite = from_seed("puppet", name), terms.primitives
    channel, mask, nonce = draw(32), draw(32), draw(16)
    keys = suite.public(channel), suite.public(mask), nonce
    signature = identity(name).sign(advert_message(terms, name, *keys)) if signs else bytes(64)
    return Puppet(Advert(name, *keys, signature), channel, mask)


def surround(victim: Any, terms: Terms, puppets: Mapping[str, Puppet]) -> np.ndarray:
    """The victim among nobody but puppets: its words, as the coordinator then computes them."""
    suite = terms.primitives
    own = insist(victim.answer(AdvertRequest(terms.to_bytes())))
    adverts = sorted((own, *(p.advert for p in puppets.values())), key=lambda advert: advert.site)
    circle, names = Circle.of(terms, adverts), [advert.site for advert in adverts]
    shares = insist(victim.answer(SharesRequest(terms.key, tuple(adverts))))

    pairs, sealed = {}, {}
    for name, p in puppets.items():
        channel = suite.exchange(p.channel_secret, own.channel_key)
        assert channel is not None
        key = suite.derive(channel, circle.t1, "channel", VICTIM, name)
        pairs[name] = suite.unseal(key, shares.sealed[name], circle.share_context(VICTIM, name))
        key = suite.derive(channel, circle.t1, "channel", name, VICTIM)
        sealed[name] = suite.seal(key, bytes(66), circle.share_context(name, VICTIM))
    enough = sorted(pairs)[: circle.threshold]
    seed = combine(tuple(circle.points()[name] for name in enough), [pairs[name][:33] for name in enough])
    assert seed is not None
    assert circle.commitment(VICTIM, seed) == shares.commitment

    request = MaskedRequest(terms.key, tuple(names), sealed)
    masked = insist(victim.answer(request, lambda: contribution_of(VICTIM), MODEL))
    return without_masks(circle, masked.words, names, {n: p.mask_secret for n, p in puppets.items()}, seed)


def without_masks(
    circle: Circle, words: bytes, members: Sequence[str], secrets: Mapping[str, bytes], seed: bytes
) -> np.ndarray:
    """The victim's words, from its self-mask seed and its peers' mask secrets."""
    t2, public = circle.t2(MODEL, members), circle.adverts[VICTIM].mask_key
    added, subtracted = [circle.self_key(seed, t2, VICTIM)], list[bytes]()
    for name, secret in secrets.items():
        shared = circle.terms.primitives.exchange(secret, public)
        assert shared is not None
        (added if name > VICTIM else subtracted).append(circle.pair_key(shared, t2, VICTIM, name))
    found = np.frombuffer(words, "<u4").astype(np.uint32)
    apply_masks(found, subtracted, added)
    return found


def is_victims(words: np.ndarray, site: Any, terms: Terms) -> bool:
    return bool((words == quantised(terms, site, contribution_of(VICTIM))).all())


# Other keys under honest names


def substitute_keys(kind: Any) -> bool:
    roster = roster_of(names_of(5))
    terms, victim = terms_of(roster), site_of(VICTIM, roster, kind)
    puppets = {name: puppet(name, terms, signs=False) for name in names_of(5)[1:]}
    return is_victims(surround(victim, terms, puppets), victim, terms)


def test_key_substitution_opens_a_site_that_checks_no_signatures() -> None:
    assert substitute_keys(site_without("bad_signature"))


def test_key_substitution_is_refused() -> None:
    with pytest.raises(Stopped, match="bad_signature"):
        substitute_keys(Site)


# Adverts of an earlier round, whose secrets have leaked since


def replay_adverts(kind: Any) -> bool:
    roster = roster_of(names_of(5))
    terms, victim = terms_of(roster), site_of(VICTIM, roster, kind)
    puppets = {name: puppet(name, replace(terms, round=6), signs=True) for name in names_of(5)[1:]}
    return is_victims(surround(victim, terms, puppets), victim, terms)


def test_replayed_adverts_open_a_site_that_checks_no_signatures() -> None:
    assert replay_adverts(site_without("bad_signature"))


def test_replayed_adverts_are_refused() -> None:
    with pytest.raises(Stopped, match="bad_signature"):
        replay_adverts(Site)


# Sites that do not exist


def invent_sites(trusts_any_roster: bool) -> bool:
    pinned, sybils = roster_of(names_of(5)), ("sybil1", "sybil2", "sybil3")
    believed = roster_of((VICTIM, *sybils)) if trusts_any_roster else pinned
    terms = terms_of(pinned, roster_digest=believed.digest)
    victim = site_of(VICTIM, believed)
    puppets = {name: puppet(name, terms, signs=True) for name in sybils}
    return is_victims(surround(victim, terms, puppets), victim, terms)


def test_sybils_open_a_site_that_takes_its_roster_from_the_coordinator() -> None:
    assert invent_sites(trusts_any_roster=True)


def test_sybils_are_refused_by_a_site_with_a_pinned_roster() -> None:
    with pytest.raises(Stopped, match="not_in_roster"):
        invent_sites(trusts_any_roster=False)


# Hardly anybody to hide among


def tiny_cohort(n: int, policy: Policy) -> bool:
    """A cohort of the victim and n - 1 colluding sites, whose vectors the coordinator knows."""
    roster, sites = consortium(n, policy=policy)
    terms = terms_of(roster, min_cohort=1, n_max=n)
    insist(site_of(VICTIM, roster, policy=policy).answer(AdvertRequest(terms.to_bytes())))
    given = {name: contribution_of(name) for name in sites}
    words = run(terms, roster, TODAY, sites, given, MODEL).words
    for name in set(sites) - {VICTIM}:
        words = words - quantised(terms, sites[name], given[name])
    return is_victims(words, sites[VICTIM], terms)


@pytest.mark.parametrize("n", [1, 2])
def test_a_tiny_cohort_opens_a_site_whose_policy_allows_it(n: int) -> None:
    assert tiny_cohort(n, Policy(frozenset({PLAN}), min_cohort=1))


@pytest.mark.parametrize("n", [1, 2])
def test_a_tiny_cohort_is_refused(n: int) -> None:
    with pytest.raises(Stopped, match="cohort_too_small"):
        tiny_cohort(n, Policy(frozenset({PLAN})))


# A round that is played twice


class Forgetful(MemoryJournal):
    """A journal that lets everything be answered again and erases nothing."""

    def record(self, key: RoundKey, phase: str, digest: bytes) -> bool:
        return True

    def erase(self, key: RoundKey) -> None:
        pass


def at_phase(phase: str, n: int, journal: Any, **changes: Any) -> tuple[Any, Any, Any, Any, list[Any]]:
    """A round among honest sites, held before a phase: roster, sites, terms, requests, answers so far."""
    roster, _ = consortium(n)
    sites = {m.site: site_of(m.site, roster, journal=journal(), **changes) for m in roster.members}
    terms = terms_of(roster)
    flow = one_round(terms, roster, TODAY, sorted(sites), MODEL)
    requests: Any = next(flow)
    told: list[Any] = []
    while phase_of(next(iter(requests.values()))) != phase:
        answers = {
            name: insist(sites[name].answer(r, lambda name=name: contribution_of(name), MODEL))
            for name, r in requests.items()
        }
        told.append(answers)
        requests = flow.send(answers)
    return roster, sites, terms, requests, told


def ask_for_two_vectors(journal: Any) -> bool:
    """The same masks over two vectors of the same round: their difference is one new patient's."""
    _, sites, _, requests, _ = at_phase("masked", 5, journal)
    victim, before = sites[VICTIM], dict(sites[VICTIM].journal.secrets)
    one, other = contribution_of(VICTIM), contribution_of(VICTIM)
    other.vector[2] *= -0.5
    first = insist(victim.answer(requests[VICTIM], lambda: one, MODEL))
    victim.journal.secrets = before  # the process has crashed before it could keep its state
    second = insist(victim.answer(requests[VICTIM], lambda: other, MODEL))
    difference = np.frombuffer(first.words, "<u4") - np.frombuffer(second.words, "<u4")
    return list(np.flatnonzero(difference)) == [2]


def test_a_second_vector_opens_a_site_whose_journal_forgets() -> None:
    assert ask_for_two_vectors(Forgetful)


def test_a_second_vector_is_refused() -> None:
    with pytest.raises(Stopped, match="answered_before"):
        ask_for_two_vectors(MemoryJournal)


# Both kinds of share of one site


def ask_for_both_kinds(journal: Any) -> bool:
    """First the victim is a survivor, and then, from a backup of the sites' state, a drop-out."""
    _, sites, terms, requests, told = at_phase("confirm", 5, journal)
    adverts, masked = told[0], told[2]
    circle = Circle.of(terms, [adverts[name] for name in sorted(adverts)])
    backup = {name: dict(site.journal.secrets) for name, site in sites.items()}
    everybody = requests[VICTIM].survivors
    shares: list[dict[int, bytes]] = []
    for survivors, kind in (
        (everybody, "self_shares"),
        (tuple(n for n in everybody if n != VICTIM), "key_shares"),
    ):
        for name in survivors:
            sites[name].journal.secrets = dict(backup[name])
        request = ConfirmRequest(terms.key, survivors)
        signatures = {name: insist(sites[name].answer(request)).signature for name in survivors}
        answers = {
            name: insist(sites[name].answer(UnmaskRequest(terms.key, signatures))) for name in survivors
        }
        shares.append({circle.points()[name]: getattr(a, kind)[VICTIM] for name, a in answers.items()})
    return opens(circle, told[1][VICTIM].commitment, masked[VICTIM].words, everybody, *shares)


def opens(
    circle: Circle,
    commitment: bytes,
    words: bytes,
    members: Sequence[str],
    self_shares: dict[int, bytes],
    key_shares: dict[int, bytes],
) -> bool:
    """Whether shares of both kinds open the victim's words."""
    suite, own = circle.terms.primitives, circle.adverts[VICTIM]
    seed = recover(self_shares, circle.threshold, lambda b: circle.commitment(VICTIM, b) == commitment)
    secret = recover(key_shares, circle.threshold, lambda s: suite.public(s) == own.mask_key)
    if seed is None or secret is None:
        return False
    t2 = circle.t2(MODEL, members)
    added, subtracted = [circle.self_key(seed, t2, VICTIM)], list[bytes]()
    for name in members:
        shared = suite.exchange(secret, circle.adverts[name].mask_key)
        if name != VICTIM and shared is not None:
            (added if name > VICTIM else subtracted).append(circle.pair_key(shared, t2, VICTIM, name))
    found = np.frombuffer(words, "<u4").astype(np.uint32)
    apply_masks(found, subtracted, added)
    roster = roster_of(sorted(circle.adverts))
    return is_victims(found, site_of(VICTIM, roster), circle.terms)


def test_both_kinds_of_share_open_a_site_among_sites_whose_journals_forget() -> None:
    assert ask_for_both_kinds(Forgetful)


def test_the_second_kind_of_share_is_refused() -> None:
    with pytest.raises(Stopped, match="answered_before"):
        ask_for_both_kinds(MemoryJournal)


# Different survivors for different sites


def split_the_view(kind: Any = Site) -> bool:
    """Three of seven are told that the victim has survived, three that it has dropped out."""
    roster, _ = consortium(7)
    _, sites, terms, requests, told = at_phase("confirm", 7, MemoryJournal)
    sites = {n: site_of(n, roster, kind, journal=site.journal) for n, site in sites.items()}
    everybody = requests[VICTIM].survivors
    circle = Circle.of(terms, [told[0][name] for name in everybody])
    others = [name for name in everybody if name != VICTIM]
    shares: list[dict[int, bytes]] = []
    for group, survivors, what in (
        (others[:3], everybody, "self_shares"),
        (others[3:], tuple(others), "key_shares"),
    ):
        request = ConfirmRequest(terms.key, survivors)
        signatures = {name: insist(sites[name].answer(request)).signature for name in group}
        answers = {name: insist(sites[name].answer(UnmaskRequest(terms.key, signatures))) for name in group}
        shares.append({circle.points()[name]: getattr(a, what)[VICTIM] for name, a in answers.items()})
    return opens(circle, told[1][VICTIM].commitment, told[2][VICTIM].words, everybody, *shares)


def test_split_views_open_a_site_where_half_of_the_shares_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(THRESHOLDS, "two_thirds", lambda n: n // 2)  # type: ignore[arg-type]
    assert split_the_view()


def test_split_views_are_refused() -> None:
    with pytest.raises(Stopped, match="too_few_confirmed"):
        split_the_view()


def test_split_views_open_nothing_even_where_nobody_confirms() -> None:
    """The threshold alone keeps the two kinds of share apart: nobody has t of both."""
    assert not split_the_view(site_without("too_few_confirmed"))


# Another model for the victim


def send_other_models(kind: Any, model_is_bound: bool) -> np.ndarray:
    """All but the victim get a model that learns nothing; the sum of what comes back, less the masks."""
    roster, sites = consortium(5, kind)
    terms = terms_of(roster)
    dead = hashlib.sha256(b"dead model").digest() if model_is_bound else MODEL
    flow = one_round(terms, roster, TODAY, sorted(sites), MODEL)
    requests: Any = next(flow)
    told: list[Any] = []
    while phase_of(requests[VICTIM]) != "confirm":
        told.append(
            {
                n: insist(
                    sites[n].answer(
                        r,
                        lambda n=n: contribution_of(n) if n == VICTIM else DEAD,
                        MODEL if n == VICTIM else dead,
                    )
                )
                for n, r in requests.items()
            }
        )
        requests = flow.send(told[-1])
    signatures = {n: insist(sites[n].answer(r)).signature for n, r in requests.items()}
    unmasked = {n: insist(sites[n].answer(UnmaskRequest(terms.key, signatures))) for n in sites}
    circle = Circle.of(terms, [told[0][name] for name in sorted(sites)])
    total = np.zeros(7, np.uint32)
    for name in sites:
        total += np.frombuffer(told[2][name].words, "<u4")
        commitment = told[1][name].commitment
        seed = recover(
            {circle.points()[n]: a.self_shares[name] for n, a in unmasked.items()},
            circle.threshold,
            lambda b, name=name, commitment=commitment: circle.commitment(name, b) == commitment,
        )
        assert seed is not None
        t2 = circle.t2(MODEL if name == VICTIM else dead, sorted(sites))
        apply_masks(total, [], [circle.self_key(seed, t2, name)])
    return total


def victims_words() -> np.ndarray:
    roster = roster_of(names_of(5))
    return quantised(terms_of(roster), site_of(VICTIM, roster), contribution_of(VICTIM))


def test_another_model_for_the_others_opens_a_site_whose_masks_are_not_bound_to_the_model() -> None:
    assert (send_other_models(Site, model_is_bound=False) == victims_words()).all()


def test_another_model_for_the_others_is_refused() -> None:
    with pytest.raises(Stopped, match="too_few_confirmed"):
        send_other_models(Site, model_is_bound=True)


def test_another_model_for_the_others_gives_noise_even_where_nobody_confirms() -> None:
    noise = send_other_models(site_without("too_few_confirmed"), model_is_bound=True)
    assert (noise != victims_words()).all()
    far = np.abs((noise - victims_words()).view(np.int32).astype(float))
    assert far.mean() > 2**31 / 8
