"""The coordinator's side: collect each phase's answers, decide who is still there, and open the sum.

Pure functions, one a phase; each takes what the one before returned. A site that is silent, refuses, or
answers something unusable has dropped out, and the round goes on without it as long as enough are left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from clinimeta.common.errors import AttemptError
from clinimeta.common.secagg.identity import Roster, is_signed
from clinimeta.common.secagg.masks import apply_masks
from clinimeta.common.secagg.messages import (
    Advert,
    AdvertRequest,
    Answer,
    Confirm,
    ConfirmRequest,
    Masked,
    MaskedRequest,
    Refusal,
    Shares,
    SharesRequest,
    Unmask,
    UnmaskRequest,
)
from clinimeta.common.secagg.recovery import recover
from clinimeta.common.secagg.ring import Contribution, Ring
from clinimeta.common.secagg.session import Circle, advert_message
from clinimeta.common.secagg.terms import Terms

Dropped: TypeAlias = Mapping[str, tuple[str, str]]
"""Site -> the phase that it missed, and why: "silent", "refused: CODE" or "unusable answer"."""

Answers: TypeAlias = Mapping[str, Answer | Refusal]
Given: TypeAlias = Mapping[str, Mapping[str, bytes]]
A = TypeVar("A", Advert, Shares, Masked, Confirm, Unmask)


@dataclass(frozen=True, slots=True)
class Opened:
    """After phase 1: the circle of all who advertised."""

    circle: Circle
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class Shared:
    """After phase 2: the members, in order of name, and what each sealed for whom."""

    circle: Circle
    members: tuple[str, ...]
    shares: Mapping[str, Shares]
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class Summed:
    """After phase 3: the sum of the survivors' masked words `[size]`, still under masks."""

    shared: Shared
    t2: bytes
    survivors: tuple[str, ...]
    total: NDArray[np.uint32]
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class Confirmed:
    """After phase 4: signatures that all see the same."""

    summed: Summed
    signatures: Mapping[str, bytes]
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class Outcome:
    """After phase 5: the survivors' sum, as whole numbers and as floats, and who dropped out when and why.

    A site may be among the survivors and among the dropped: its vector counts, and then it went.
    """

    words: NDArray[np.uint32]
    total: Contribution
    survivors: tuple[str, ...]
    dropped: Dropped


def advert_requests(terms: Terms, sites: Sequence[str]) -> dict[str, AdvertRequest]:
    """Phase 1 to all: the terms."""
    assert len(sites) <= terms.n_max
    return {site: AdvertRequest(terms.to_bytes()) for site in sites}


def collect_adverts(
    terms: Terms, roster: Roster, today: date, asked: Sequence[str], answers: Answers
) -> Opened:
    """Phase 1: those whose advert is signed for these terms by a key of the roster, with usable keys.

    Raises:
        AttemptError: fewer than the terms' smallest cohort.
    """

    def is_usable(site: str, advert: Advert) -> bool:
        member = roster.member(site)
        signed = advert_message(terms, site, advert.channel_key, advert.mask_key, advert.nonce)
        return (
            member is not None
            and member.is_valid(today)
            and is_signed(member.key, signed, advert.signature)
            and all(map(terms.primitives.is_usable, (advert.channel_key, advert.mask_key)))
        )

    found, dropped = _present("advert", Advert, asked, answers, {}, is_usable)
    _require("advert", len(found), terms.min_cohort, dropped)
    return Opened(Circle.of(terms, [found[site] for site in sorted(found)]), dropped)


def shares_requests(opened: Opened) -> dict[str, SharesRequest]:
    """Phase 2 to all who advertised: all adverts."""
    adverts = tuple(opened.circle.adverts.values())
    return {site: SharesRequest(opened.circle.terms.key, adverts) for site in opened.circle.adverts}


def collect_shares(opened: Opened, answers: Answers) -> Shared:
    """Phase 2: those who gave each of their neighbours a share.

    Raises:
        AttemptError: too few to go over the threshold.
    """
    circle = opened.circle

    def is_usable(site: str, shares: Shares) -> bool:
        return shares.key == circle.terms.key and set(shares.sealed) == set(circle.neighbours(site))

    found, dropped = _present("shares", Shares, circle.adverts, answers, opened.dropped, is_usable)
    _require("shares", len(found), _needed(circle), dropped)
    return Shared(circle, tuple(sorted(found)), found, dropped)


def masked_requests(shared: Shared) -> dict[str, MaskedRequest]:
    """Phase 3 to all members: who is one, and the shares for each."""
    members = set(shared.members)
    return {
        site: MaskedRequest(
            shared.circle.terms.key,
            shared.members,
            {
                peer: shared.shares[peer].sealed[site]
                for peer in shared.circle.neighbours(site)
                if peer in members
            },
        )
        for site in shared.members
    }


def collect_masked(shared: Shared, model_digest: bytes, answers: Answers) -> Summed:
    """Phase 3: the sum of all masked vectors that are there.

    `model_digest` is that of the model as it was sent, computed as `Site.masked` says.

    Raises:
        AttemptError: too few to go over the threshold.
    """
    circle, size = shared.circle, Ring.of(shared.circle.terms).size

    def is_usable(_site: str, masked: Masked) -> bool:
        return masked.key == circle.terms.key and len(masked.words) == 4 * size

    found, dropped = _present("masked", Masked, shared.members, answers, shared.dropped, is_usable)
    _require("masked", len(found), _needed(circle), dropped)
    total = np.zeros(size, np.uint32)
    for masked in found.values():
        total += np.frombuffer(masked.words, "<u4")
    return Summed(shared, circle.t2(model_digest, shared.members), tuple(sorted(found)), total, dropped)


def confirm_requests(summed: Summed) -> dict[str, ConfirmRequest]:
    """Phase 4 to all survivors: who they are."""
    key = summed.shared.circle.terms.key
    return {site: ConfirmRequest(key, summed.survivors) for site in summed.survivors}


def collect_confirms(summed: Summed, roster: Roster, answers: Answers) -> Confirmed:
    """Phase 4: the signatures that fit what was sent.

    Raises:
        AttemptError: fewer than the threshold.
    """
    circle = summed.shared.circle
    t3 = circle.t3(summed.t2, summed.survivors)

    def is_usable(site: str, confirm: Confirm) -> bool:
        member = roster.member(site)
        signed = circle.confirmation(t3, site)
        return (
            confirm.key == circle.terms.key
            and member is not None
            and is_signed(member.key, signed, confirm.signature)
        )

    found, dropped = _present("confirm", Confirm, summed.survivors, answers, summed.dropped, is_usable)
    _require("confirm", len(found), circle.threshold, dropped)
    return Confirmed(summed, {site: confirm.signature for site, confirm in found.items()}, dropped)


def unmask_requests(confirmed: Confirmed) -> dict[str, UnmaskRequest]:
    """Phase 5 to all who confirmed: as many signatures as a site asks for."""
    circle = confirmed.summed.shared.circle
    enough = dict(sorted(confirmed.signatures.items())[: circle.threshold])
    return {site: UnmaskRequest(circle.terms.key, enough) for site in confirmed.signatures}


def unmask(confirmed: Confirmed, answers: Answers) -> Outcome:
    """Phase 5: put the secrets together, take the masks off, and turn whole numbers into floats.

    A self-mask seed is checked against its commitment and a mask key against its public key; where some
    shares are wrong, others are tried.

    Raises:
        AttemptError: a secret cannot be put together; only a new round will do.
    """
    summed = confirmed.summed
    circle, survivors = summed.shared.circle, set(summed.survivors)
    suite, points = circle.terms.primitives, circle.points()

    def is_usable(_site: str, answer: Unmask) -> bool:
        return answer.key == circle.terms.key

    found, dropped = _present(
        "unmask", Unmask, tuple(confirmed.signatures), answers, confirmed.dropped, is_usable
    )
    self_shares: Given = {site: answer.self_shares for site, answer in found.items()}
    key_shares: Given = {site: answer.key_shares for site, answer in found.items()}
    distrusted: set[int] = set()

    def secret_of(site: str, given: Given, is_right: Callable[[bytes], bool]) -> bytes:
        holders = circle.holders(site)
        shares = {points[h]: given[h][site] for h in holders if h in given and site in given[h]}
        needed = circle.terms.needed(len(holders))
        secret = recover(shares, needed, is_right, distrusted)
        if secret is None:
            raise AttemptError("unmask", len(shares), needed, dropped)
        return secret

    added, subtracted = list[bytes](), list[bytes]()  # what the survivors have added and subtracted
    for site in summed.survivors:
        seed = secret_of(
            site, self_shares, partial(_is_seed, circle, site, summed.shared.shares[site].commitment)
        )
        added.append(circle.self_key(seed, summed.t2, site))
    for site in sorted(set(summed.shared.members) - survivors):
        peers = [peer for peer in circle.neighbours(site) if peer in survivors]
        if not peers:
            continue
        secret = secret_of(site, key_shares, partial(_is_mask_secret, circle, site))
        for peer in peers:
            shared = suite.exchange(secret, circle.adverts[peer].mask_key)
            assert shared is not None  # the peer itself has used this key
            key = circle.pair_key(shared, summed.t2, peer, site)
            (added if peer < site else subtracted).append(key)
    words = summed.total.copy()
    apply_masks(words, subtracted, added)
    return Outcome(words, Ring.of(circle.terms).dequantise(words), summed.survivors, dropped)


def _is_seed(circle: Circle, site: str, commitment: bytes, secret: bytes) -> bool:
    return circle.commitment(site, secret) == commitment


def _is_mask_secret(circle: Circle, site: str, secret: bytes) -> bool:
    return circle.terms.primitives.public(secret) == circle.adverts[site].mask_key


def _needed(circle: Circle) -> int:
    return max(circle.threshold, circle.terms.min_cohort)


def _require(phase: str, present: int, needed: int, dropped: Dropped) -> None:
    if present < needed:
        raise AttemptError(phase, present, needed, dropped)


def _present(
    phase: str,
    kind: type[A],
    asked: Sequence[str] | Mapping[str, object],
    answers: Answers,
    dropped: Dropped,
    is_usable: Callable[[str, A], bool],
) -> tuple[dict[str, A], Dropped]:
    """The usable answers of those asked, and who dropped out until now, with phase and reason."""
    found: dict[str, A] = {}
    missing: dict[str, tuple[str, str]] = {}
    for site in asked:
        answer = answers.get(site)
        if isinstance(answer, kind) and answer.site == site and is_usable(site, answer):
            found[site] = answer
        elif answer is None:
            missing[site] = phase, "silent"
        else:
            missing[site] = (
                phase,
                f"refused: {answer.code}" if isinstance(answer, Refusal) else "unusable answer",
            )
    return found, {**dropped, **missing}
