"""For each code of a refusal: what must be refused with it. Used on the site as it is, and on mutants."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
from parties import (
    MODEL,
    POLICY,
    TODAY,
    consortium,
    contribution_of,
    identity,
    names_of,
    roster_of,
    site_of,
    terms_of,
)

from clinimeta.common.secagg import protocol
from clinimeta.common.secagg.identity import Roster
from clinimeta.common.secagg.messages import (
    Advert,
    AdvertRequest,
    ConfirmRequest,
    SharesRequest,
    UnmaskRequest,
    phase_of,
)
from clinimeta.common.secagg.packing import decode
from clinimeta.common.secagg.session import Circle, Session, advert_message
from clinimeta.common.secagg.terms import RoundKey, Terms

ME = "bern"  # the site that is put to the test
SCENARIOS: list[tuple[str, str, Callable[[Any], Any]]] = []
"""(Code, what is wrong, function of the class `Site` that returns the site's last answer)."""


def refused(code: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """The decorated scenario ends in a refusal with this code."""

    def register(scenario: Callable[[Any], Any]) -> Callable[[Any], Any]:
        SCENARIOS.append((code, scenario.__name__, scenario))
        return scenario

    return register


class Stage:
    """A round among honest sites and the one under test, held before some phase."""

    def __init__(
        self, kind: Any, phase: str = "advert", n: int = 5, terms: Any = None, **changes: Any
    ) -> None:
        self.roster, self.sites = consortium(n)
        self.sites[ME] = site_of(ME, changes.pop("roster", self.roster), kind, **changes)
        self.terms: Terms = terms_of(self.roster, **(terms or {}))
        self.flow = protocol.one_round(self.terms, self.roster, TODAY, sorted(self.sites), MODEL)
        self.requests: Any = next(self.flow)
        self.last: Any = {}
        while phase_of(self.request) != phase:
            self.go_on()

    @property
    def request(self) -> Any:
        return self.requests[ME]

    def go_on(self) -> None:
        self.last = {name: self.ask(name, request) for name, request in self.requests.items()}
        self.requests = self.flow.send(self.last)

    def ask(self, name: str, request: Any, given: Any = None) -> Any:
        given = contribution_of(name) if given is None else given
        return self.sites[name].answer(request, lambda: given, MODEL)

    def ask_me(self, request: Any = None, **changes: Any) -> Any:
        return self.ask(ME, replace(self.request, **changes) if request is None else request)


def policy(**changes: Any) -> Any:
    return replace(POLICY, **changes)


# Phase 1


@refused("bad_terms")
def terms_with_a_byte_too_many(kind: Any) -> Any:
    stage = Stage(kind)
    return stage.ask_me(terms=stage.request.terms + b"\0")


@refused("suite_not_allowed")
def a_suite_that_the_policy_lacks(kind: Any) -> Any:
    return Stage(kind, policy=policy(suites=frozenset())).ask_me()


@refused("plan_not_approved")
def another_plan(kind: Any) -> Any:
    return Stage(kind, terms={"plan_digest": bytes(32)}).ask_me()


@refused("public_not_allowed")
def a_value_in_clear_that_the_policy_keeps(kind: Any) -> Any:
    return Stage(kind, policy=policy(public=frozenset({"rows"})), terms={"public": ("age", "rows")}).ask_me()


@refused("too_large")
def a_vector_over_the_limit(kind: Any) -> Any:
    return Stage(kind, policy=policy(max_size=6)).ask_me()


@refused("graph_not_allowed")
def a_sparse_graph_for_a_small_cohort(kind: Any) -> Any:
    return Stage(kind, terms={"degree": 4}).ask_me()


@refused("graph_not_allowed")
def a_graph_sparser_than_the_policy_has_it(kind: Any) -> Any:
    return Stage(kind, terms={"degree": 2, "n_max": 100}).ask_me()


@refused("cohort_too_small")
def terms_that_allow_a_cohort_of_two(kind: Any) -> Any:
    return Stage(kind, terms={"min_cohort": 2}).ask_me()


@refused("cohort_too_small")
def terms_under_a_stricter_policy(kind: Any) -> Any:
    return Stage(kind, policy=policy(min_cohort=4)).ask_me()


@refused("other_roster")
def a_roster_of_another_version(kind: Any) -> Any:
    return Stage(kind, roster=replace(roster_of(names_of(5)), version=2)).ask_me()


@refused("round_closed")
def a_retry_after_the_round_was_opened(kind: Any) -> Any:
    stage = Stage(kind, "unmask")
    stage.ask_me()
    return stage.ask_me(AdvertRequest(replace(stage.terms, attempt=1).to_bytes()))


@refused("round_closed")
def an_attempt_before_the_one_under_way(kind: Any) -> Any:
    stage = Stage(kind, terms={"attempt": 1})
    stage.ask_me()
    return stage.ask_me(AdvertRequest(replace(stage.terms, attempt=0).to_bytes()))


@refused("answered_before")
def the_same_terms_twice(kind: Any) -> Any:
    stage = Stage(kind)
    stage.ask_me()
    return stage.ask_me()


@refused("answered_before")
def an_answer_lost_with_the_process_that_gave_it(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    journal = stage.sites[ME].journal
    before = dict(journal.secrets)
    stage.ask_me()
    journal.secrets = before  # the process died between `record` and `keep`
    return stage.ask_me()


# Phase 2


@refused("unknown_round")
def adverts_of_a_round_that_was_never_opened(kind: Any) -> Any:
    return Stage(kind, "shares").ask_me(key=RoundKey("run", 8, 0))


@refused("unknown_round")
def an_attempt_that_a_later_one_has_replaced(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    stage.ask_me(AdvertRequest(replace(stage.terms, attempt=1).to_bytes()))
    return stage.ask_me()


@refused("unknown_round")
def a_round_that_is_over(kind: Any) -> Any:
    stage = Stage(kind, "unmask")
    stage.ask_me()
    return stage.ask_me()


@refused("out_of_order")
def the_adverts_a_second_time(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    stage.ask_me()
    return stage.ask_me()


@refused("out_of_order")
def a_second_masked_vector(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    stage.ask_me()
    return stage.ask_me()


@refused("out_of_order")
def a_second_set_of_survivors(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    stage.ask_me()
    return stage.ask_me(survivors=stage.request.survivors[:4])


@refused("out_of_order")
def unmasking_before_confirming(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    return stage.ask_me(UnmaskRequest(stage.terms.key, {}))


@refused("duplicate_site")
def an_advert_twice(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=(*stage.request.adverts, stage.request.adverts[-1]))


@refused("duplicate_site")
def adverts_out_of_order(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=stage.request.adverts[::-1])


@refused("too_few_sites")
def a_cohort_of_one(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=stage.request.adverts[:1])


@refused("too_few_sites")
def a_cohort_of_two(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=stage.request.adverts[:2])


@refused("too_few_sites")
def a_cohort_smaller_than_the_terms_have_it(kind: Any) -> Any:
    stage = Stage(kind, "shares", terms={"min_cohort": 4})
    return stage.ask_me(adverts=stage.request.adverts[:3])


def become_stricter(stage: Stage, min_cohort: int) -> None:
    stage.sites[ME] = replace(stage.sites[ME], policy=policy(min_cohort=min_cohort))


@refused("too_few_sites")
def a_cohort_under_a_policy_that_has_become_stricter(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    become_stricter(stage, 4)
    return stage.ask_me(adverts=stage.request.adverts[:3])


def adverts_of(roster: Roster, terms: Terms) -> tuple[Advert, ...]:
    sites = [site_of(member.site, roster) for member in roster.members]
    return tuple(site.advert(AdvertRequest(terms.to_bytes())) for site in sites)


def opened(kind: Any, roster: Roster, terms: Terms, **changes: Any) -> Any:
    """The site after its advert, which is the same as that of an honest site's."""
    site = site_of(ME, roster, kind, **changes)
    site.answer(AdvertRequest(terms.to_bytes()))
    return site


@refused("too_many_sites")
def more_sites_than_the_scale_allows_for(kind: Any) -> Any:
    roster = roster_of(names_of(5))
    terms = terms_of(roster, n_max=4)
    return opened(kind, roster, terms).answer(SharesRequest(terms.key, adverts_of(roster, terms)))


def signed_by(name: str, terms: Terms, **keys: bytes) -> Advert:
    keys = {"channel_key": bytes([9]) * 32, "mask_key": bytes([9]) * 32, "nonce": bytes(16)} | keys
    signature = identity(name).sign(advert_message(terms, name, **keys))
    return Advert(name, signature=signature, **keys)


@refused("not_in_roster")
def a_site_that_nobody_knows(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    stranger = signed_by("sybil", stage.terms)
    adverts = sorted((*stage.request.adverts[:4], stranger), key=lambda advert: advert.site)
    return stage.ask_me(adverts=tuple(adverts))


@refused("key_not_valid")
def a_site_that_was_revoked(kind: Any) -> Any:
    roster = roster_of(names_of(5))
    members = [replace(member, revoked=member.site == "lund") for member in roster.members]
    roster = Roster(1, tuple(members))
    terms = terms_of(roster)
    return opened(kind, roster, terms).answer(SharesRequest(terms.key, adverts_of(roster, terms)))


@refused("key_not_valid")
def keys_that_are_out_of_date(kind: Any) -> Any:
    return Stage(kind, "shares", today=lambda: date(2028, 1, 1)).ask_me()


def with_advert(stage: Stage, name: str, advert: Advert) -> tuple[Advert, ...]:
    return tuple(advert if known.site == name else known for known in stage.request.adverts)


@refused("bad_signature")
def a_channel_key_of_the_coordinators(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(
        adverts=with_advert(stage, "lund", replace(stage.last["lund"], channel_key=bytes([9]) * 32))
    )


@refused("bad_signature")
def a_mask_key_of_the_coordinators(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(
        adverts=with_advert(stage, "lund", replace(stage.last["lund"], mask_key=bytes([9]) * 32))
    )


@refused("bad_signature")
def another_nonce(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=with_advert(stage, "lund", replace(stage.last["lund"], nonce=bytes(16))))


@refused("bad_signature")
def an_advert_of_an_earlier_round(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    earlier = signed_by("lund", replace(stage.terms, round=6))
    return stage.ask_me(adverts=with_advert(stage, "lund", earlier))


@refused("bad_signature")
def an_advert_in_another_sites_name(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=with_advert(stage, "lund", replace(stage.last["graz"], site="lund")))


@refused("own_advert_changed")
def a_circle_without_the_site_itself(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=tuple(a for a in stage.request.adverts if a.site != ME))


@refused("own_advert_changed")
def the_sites_own_name_with_another_advert_that_it_signed(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    return stage.ask_me(adverts=with_advert(stage, ME, signed_by(ME, stage.terms)))


@refused("bad_public_key")
def a_peers_channel_key_of_small_order(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    weak = signed_by("lund", stage.terms, channel_key=bytes(32))
    return stage.ask_me(adverts=with_advert(stage, "lund", weak))


@refused("bad_public_key")
def a_peers_key_of_another_length(kind: Any) -> Any:
    stage = Stage(kind, "shares")
    weak = signed_by("lund", stage.terms, channel_key=bytes(31))
    return stage.ask_me(adverts=with_advert(stage, "lund", weak))


# Phase 3


@refused("members_unknown")
def a_member_that_has_not_advertised(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    return stage.ask_me(members=(*stage.request.members, "zagreb"))


@refused("members_unknown")
def a_member_twice(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    return stage.ask_me(members=(*stage.request.members, stage.request.members[-1]))


@refused("self_not_member")
def members_without_the_site_itself(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    return stage.ask_me(members=stage.request.members[1:])


def among(stage: Stage, members: tuple[str, ...]) -> Any:
    sealed = {peer: share for peer, share in stage.request.sealed.items() if peer in members}
    return stage.ask_me(members=members, sealed=sealed)


@refused("too_few_members")
def fewer_members_than_the_threshold(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    return among(stage, stage.request.members[:3])


@refused("too_few_members")
def fewer_members_than_the_terms_ask_for(kind: Any) -> Any:
    stage = Stage(kind, "masked", terms={"min_cohort": 5})
    return among(stage, stage.request.members[:4])


@refused("too_few_members")
def too_few_members_among_the_neighbours(kind: Any) -> Any:
    stage = Stage(kind, "masked", n=10, terms={"degree": 4})
    near = set(stage.request.sealed)
    left = sorted(near)[:2]  # with the site itself 3 of 5 holders, where it takes 4
    return among(stage, tuple(m for m in stage.request.members if m in left or m not in near))


@refused("too_few_members")
def too_few_members_though_enough_are_neighbours(kind: Any) -> Any:
    stage = Stage(kind, "masked", n=10, terms={"degree": 4})
    near = {ME, *stage.request.sealed}
    others = [m for m in stage.request.members if m not in near]
    return among(stage, tuple(sorted((*near, others[0]))))  # 6 of 10, where it takes 7


@refused("too_few_members")
def members_under_a_policy_that_has_become_stricter(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    become_stricter(stage, 5)
    return among(stage, stage.request.members[:4])


@refused("shares_do_not_fit")
def a_members_share_held_back(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    sealed = dict(stage.request.sealed)
    del sealed["lund"]
    return stage.ask_me(sealed=sealed)


@refused("shares_do_not_fit")
def a_share_of_one_who_is_no_member(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    return stage.ask_me(members=tuple(m for m in stage.request.members if m != "lund"))


@refused("share_not_authentic")
def a_share_with_a_flipped_bit(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    share = bytearray(stage.request.sealed["lund"])
    share[0] ^= 1
    return stage.ask_me(sealed={**stage.request.sealed, "lund": bytes(share)})


@refused("share_not_authentic")
def two_shares_swapped(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    sealed = dict(stage.request.sealed)
    sealed["lund"], sealed["graz"] = sealed["graz"], sealed["lund"]
    return stage.ask_me(sealed=sealed)


@refused("share_not_authentic")
def a_share_that_was_sealed_for_another_site(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    return stage.ask_me(sealed={**stage.request.sealed, "lund": stage.requests["graz"].sealed["lund"]})


@refused("share_not_authentic")
def a_share_of_another_length(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    session = decode(Session, stage.sites["lund"].journal.load(stage.terms.key))
    circle, suite = Circle.of(stage.terms, session.adverts), stage.terms.primitives
    channel = suite.exchange(session.channel_secret, circle.adverts[ME].channel_key)
    key = suite.derive(channel, circle.t1, "channel", "lund", ME)
    sealed = suite.seal(key, bytes(65), circle.share_context("lund", ME))
    return stage.ask_me(sealed={**stage.request.sealed, "lund": sealed})


@refused("bad_vector")
def a_vector_with_nan(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    given = contribution_of(ME)
    given.vector[1] = np.nan
    return stage.ask(ME, stage.request, given)


@refused("bad_vector")
def a_vector_over_the_bound(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    given = contribution_of(ME)
    given.vector[1] = -2.5
    return stage.ask(ME, stage.request, given)


@refused("bad_vector")
def a_vector_of_another_length(kind: Any) -> Any:
    stage = Stage(kind, "masked")
    return stage.ask(ME, stage.request, contribution_of(ME, dim=6))


# Phases 4 and 5


@refused("survivors_unknown")
def a_survivor_that_is_no_member(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    return stage.ask_me(survivors=(*stage.request.survivors, "zagreb"))


@refused("survivors_unknown")
def a_survivor_twice(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    return stage.ask_me(survivors=(*stage.request.survivors[:4], stage.request.survivors[3]))


@refused("survivors_unknown")
def survivors_out_of_order(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    return stage.ask_me(survivors=stage.request.survivors[::-1])


@refused("self_not_survivor")
def survivors_without_the_site_itself(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    return stage.ask_me(survivors=stage.request.survivors[1:])


@refused("too_few_survivors")
def fewer_survivors_than_the_threshold(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    return stage.ask_me(survivors=stage.request.survivors[:3])


@refused("too_few_survivors")
def fewer_survivors_than_the_terms_ask_for(kind: Any) -> Any:
    stage = Stage(kind, "confirm", terms={"min_cohort": 5})
    return stage.ask_me(survivors=stage.request.survivors[:4])


def ask_to_unmask(kind: Any, tamper: Callable[[Stage, dict[str, bytes]], dict[str, bytes]]) -> Any:
    stage = Stage(kind, "unmask")
    signatures = {name: answer.signature for name, answer in stage.last.items()}
    return stage.ask_me(signatures=tamper(stage, signatures))


@refused("too_few_confirmed")
def fewer_signatures_than_the_threshold(kind: Any) -> Any:
    return ask_to_unmask(kind, lambda _, known: dict(sorted(known.items())[:3]))


@refused("too_few_confirmed")
def one_sites_signature_under_many_names(kind: Any) -> Any:
    return ask_to_unmask(kind, lambda _, known: dict.fromkeys(known, known["lund"]))


@refused("too_few_confirmed")
def signatures_over_other_survivors(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    other = stage.request.survivors[:4]
    me = stage.ask_me()
    others = {n: stage.ask(n, ConfirmRequest(stage.terms.key, other)) for n in other if n != ME}
    return stage.ask_me(
        UnmaskRequest(stage.terms.key, {n: a.signature for n, a in {**others, ME: me}.items()})
    )


@refused("too_few_confirmed")
def signatures_of_sites_that_are_no_survivors(kind: Any) -> Any:
    stage = Stage(kind, "confirm")
    key, site = stage.terms.key, stage.sites[ME]
    survivors = stage.request.survivors[:4]  # the threshold is 4, and one of these will not sign
    stage.ask_me(survivors=survivors)
    honest = {n: stage.ask(n, ConfirmRequest(key, survivors)) for n in survivors[:3] if n != ME}
    outsider = stage.request.survivors[4]
    signatures = {n: a.signature for n, a in honest.items()}
    return site.answer(UnmaskRequest(key, {**signatures, outsider: signatures["graz"]}))


def plays_along(kind: Any) -> bool:
    """Whether the site takes part in an honest round, with everybody its neighbour and with a few."""
    try:
        for terms in ({}, {"degree": 4}):
            stage = Stage(kind, "unmask", n=8, terms=terms)
            try:
                stage.go_on()
            except StopIteration as finished:
                if finished.value.dropped:
                    return False
    except Exception:
        return False
    return True
