"""A site's side (run by the site): five phases, each answered once, or refused with a code.

Whatever the coordinator asks, a site checks first, records second and answers last. All it knows between two
phases lies in its journal, so a process that dies and comes back goes on, or refuses; it never answers twice.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date

from clinimeta.common.errors import BoundError, RecordError
from clinimeta.common.secagg.identity import Identity, Roster, is_signed
from clinimeta.common.secagg.journal import Journal
from clinimeta.common.secagg.masks import apply_masks
from clinimeta.common.secagg.messages import (
    PHASES,
    Advert,
    AdvertRequest,
    Answer,
    Confirm,
    ConfirmRequest,
    Masked,
    MaskedRequest,
    Refusal,
    Request,
    Shares,
    SharesRequest,
    Unmask,
    UnmaskRequest,
    phase_of,
    to_bytes,
)
from clinimeta.common.secagg.packing import decode, encode
from clinimeta.common.secagg.policy import Policy
from clinimeta.common.secagg.refusal import Refused
from clinimeta.common.secagg.ring import Contribution, Ring, rounding_key
from clinimeta.common.secagg.session import Circle, Session, advert_message, key_share, self_share
from clinimeta.common.secagg.shamir import SHARE_BYTES, RandomBytes, split
from clinimeta.common.secagg.terms import RoundKey, Terms

Train = Callable[[], Contribution]
"""Computes what the site adds; called once, after every check of phase `masked`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The terms of an attempt, and the fewest survivors that a site confirms a sum of."""

    terms: Terms
    survivors: int


@dataclass(frozen=True, slots=True)
class Site:
    """One site. It holds no state of its own: `journal` does.

    `rounding_seed` (32 bytes) makes the quantiser's rounding a function of run, round and site.
    """

    identity: Identity
    roster: Roster
    policy: Policy
    journal: Journal
    today: Callable[[], date]
    rounding_seed: bytes = field(repr=False)
    random_bytes: RandomBytes = secrets.token_bytes

    @property
    def name(self) -> str:
        """The site's name in the roster."""
        return self.identity.name

    def opened(self, key: RoundKey) -> Opened | None:
        """What was agreed of an attempt that this site has begun, until it is over."""
        data = self.journal.load(key)
        session = decode(Session, data) if data is not None else None
        if session is None:
            return None
        circle = Circle.of(session.terms, session.adverts)
        return Opened(session.terms, self._least(circle))

    def answer(
        self, request: Request, train: Train | None = None, model_digest: bytes = b""
    ) -> Answer | Refusal:
        """The answer to any request; the last two are for phase `masked`, see there."""
        try:
            match request:
                case AdvertRequest():
                    return self.advert(request)
                case SharesRequest():
                    return self.shares(request)
                case MaskedRequest():
                    assert train is not None
                    return self.masked(request, train, model_digest)
                case ConfirmRequest():
                    return self.confirm(request)
                case UnmaskRequest():
                    return self.unmask(request)
        except Refused as refused:
            return Refusal(self.name, phase_of(request), refused.code, refused.sentence)

    def advert(self, request: AdvertRequest) -> Advert:
        """Phase 1: look at the terms; make keys for this attempt; sign them.

        Raises:
            Refused: the terms are against the policy, or the attempt is not a new one.
        """
        try:
            terms = Terms.from_bytes(request.terms)
        except RecordError:
            raise Refused("bad_terms") from None
        policy = self.policy
        if terms.suite not in policy.suites:
            raise Refused("suite_not_allowed")
        if terms.plan_digest not in policy.plans:
            raise Refused("plan_not_approved")
        if not policy.public.issuperset(terms.public):
            raise Refused("public_not_allowed")
        if terms.dim + len(terms.columns) > policy.max_size:
            raise Refused("too_large")
        if terms.degree and (terms.n_max < policy.sparse_from or terms.degree < policy.min_degree):
            raise Refused("graph_not_allowed")
        if terms.min_cohort < policy.min_cohort:
            raise Refused("cohort_too_small", f"{terms.min_cohort} allowed, {policy.min_cohort} needed")
        if terms.roster_digest != self.roster.digest:
            raise Refused("other_roster")
        answered = self.journal.answered(terms.run, terms.round)
        if any(attempt > terms.attempt or phase == "unmask" for attempt, phase in answered):
            raise Refused("round_closed")
        self._record(terms.key, request)
        for attempt, _ in answered:
            self.journal.erase(RoundKey(terms.run, terms.round, attempt))
        suite = terms.primitives
        channel_secret, mask_secret = self.random_bytes(32), self.random_bytes(32)
        nonce = self.random_bytes(16)
        channel_key, mask_key = suite.public(channel_secret), suite.public(mask_secret)
        signature = self.identity.sign(advert_message(terms, self.name, channel_key, mask_key, nonce))
        advert = Advert(self.name, channel_key, mask_key, nonce, signature)
        self._keep(Session("advert", terms, advert, channel_secret, mask_secret))
        return advert

    def shares(self, request: SharesRequest) -> Shares:
        """Phase 2: look at all adverts; give each neighbour a share of both secrets.

        Raises:
            Refused: who takes part, or how they say so, is not as it must be.
        """
        session = self._session(request.key, "shares")
        terms, suite = session.terms, session.terms.primitives
        self._check_adverts(session, request.adverts)
        circle = Circle.of(terms, request.adverts)
        seed = self.random_bytes(32)
        holders, points = circle.holders(self.name), circle.points()
        threshold, at = terms.needed(len(holders)), [points[holder] for holder in holders]
        channels = {
            peer: _exchange(circle, session.channel_secret, circle.adverts[peer].channel_key, peer)
            for peer in holders
            if peer != self.name
        }
        self._record(request.key, request)
        self_shares = split(seed, threshold, at, self.random_bytes)
        key_shares = split(session.mask_secret, threshold, at, self.random_bytes)
        pairs = {h: a + b for h, a, b in zip(holders, self_shares, key_shares, strict=True)}
        sealed = {
            peer: suite.seal(
                suite.derive(channel, circle.t1, "channel", self.name, peer),
                pairs[peer],
                circle.share_context(self.name, peer),
            )
            for peer, channel in channels.items()
        }
        held = {self.name: pairs[self.name]}
        self._keep(replace(session, phase="shares", self_seed=seed, adverts=request.adverts, held=held))
        return Shares(request.key, self.name, sealed, circle.commitment(self.name, seed))

    def _check_adverts(self, session: Session, adverts: tuple[Advert, ...]) -> None:
        terms, today = session.terms, self.today()
        names = [advert.site for advert in adverts]
        if names != sorted(set(names)):
            raise Refused("duplicate_site")
        if len(names) < max(terms.min_cohort, self.policy.min_cohort):
            raise Refused("too_few_sites", f"{len(names)} sites")
        if len(names) > terms.n_max:
            raise Refused("too_many_sites", f"{len(names)} sites")
        for advert in adverts:
            member = self.roster.member(advert.site)
            if member is None:
                raise Refused("not_in_roster", f"{advert.site} is not in the roster")
            if not member.is_valid(today):
                raise Refused("key_not_valid", f"the key of {advert.site} is revoked or out of date")
            signed = advert_message(terms, advert.site, advert.channel_key, advert.mask_key, advert.nonce)
            if not is_signed(member.key, signed, advert.signature):
                raise Refused(
                    "bad_signature", f"the advert of {advert.site} is not signed by it for these terms"
                )
        if session.advert not in adverts:
            raise Refused("own_advert_changed")

    def masked(self, request: MaskedRequest, train: Train, model_digest: bytes) -> Masked:
        """Phase 3: open the neighbours' shares; train; round; add the masks.

        Args:
            request: who has shared, and their shares for this site.
            train: see `Train`.
            model_digest: SHA-256 of the model and whatever else must be equal at all sites, taken by the
                site itself from what it received, never from the coordinator's word.

        Raises:
            Refused: the members or their shares are not as they must be, or the site's own vector is not.
        """
        assert len(model_digest) == 32
        session = self._session(request.key, "masked")
        terms, circle = session.terms, Circle.of(session.terms, session.adverts)
        members, near = request.members, circle.holders(self.name)
        if not circle.adverts.keys() >= set(members) or list(members) != sorted(set(members)):
            raise Refused("members_unknown")
        if self.name not in members:
            raise Refused("self_not_member")
        if not self._are_enough(circle, members, near):
            raise Refused("too_few_members", f"{len(members)} members")
        peers = [peer for peer in members if peer in near and peer != self.name]
        if set(request.sealed) != set(peers):
            raise Refused("shares_do_not_fit")
        held = {**session.held, **{p: self._open(session, circle, p, request.sealed[p]) for p in peers}}
        t2 = circle.t2(model_digest, members)
        pair_keys = {
            peer: circle.pair_key(
                _exchange(circle, session.mask_secret, circle.adverts[peer].mask_key, peer),
                t2,
                self.name,
                peer,
            )
            for peer in peers
        }
        self._record(request.key, request)
        seed = rounding_key(self.rounding_seed, terms.run, terms.round, self.name)
        try:
            words = Ring.of(terms).quantise(train(), seed)
        except BoundError as error:
            raise Refused("bad_vector", str(error)) from None
        added = [key for peer, key in pair_keys.items() if self.name < peer]
        subtracted = [key for peer, key in pair_keys.items() if self.name > peer]
        apply_masks(words, [circle.self_key(session.self_seed, t2, self.name), *added], subtracted)
        used = replace(session, channel_secret=b"", mask_secret=b"", self_seed=b"")
        self._keep(replace(used, phase="masked", held=held, members=members, t2=t2))
        return Masked(request.key, self.name, words.astype("<u4", copy=False).tobytes())

    def _open(self, session: Session, circle: Circle, peer: str, sealed: bytes) -> bytes:
        suite = session.terms.primitives
        shared = _exchange(circle, session.channel_secret, circle.adverts[peer].channel_key, peer)
        key = suite.derive(shared, circle.t1, "channel", peer, self.name)
        pair = suite.unseal(key, sealed, circle.share_context(peer, self.name))
        if pair is None or len(pair) != 2 * SHARE_BYTES:
            raise Refused("share_not_authentic", f"the share of {peer} is not what it sealed")
        return pair

    def confirm(self, request: ConfirmRequest) -> Confirm:
        """Phase 4: look at who is added up; sign it, once.

        Raises:
            Refused: the survivors are not as they must be.
        """
        session = self._session(request.key, "confirm")
        circle, survivors = Circle.of(session.terms, session.adverts), request.survivors
        if not set(session.members) >= set(survivors) or list(survivors) != sorted(set(survivors)):
            raise Refused("survivors_unknown")
        if self.name not in survivors:
            raise Refused("self_not_survivor")
        if not self._are_enough(circle, survivors, circle.holders(self.name)):
            raise Refused("too_few_survivors", f"{len(survivors)} survivors")
        self._record(request.key, request)
        self._keep(replace(session, phase="confirm", survivors=survivors))
        t3 = circle.t3(session.t2, survivors)
        return Confirm(request.key, self.name, self.identity.sign(circle.confirmation(t3, self.name)))

    def unmask(self, request: UnmaskRequest) -> Unmask:
        """Phase 5: give shares of one kind for each member, survivor or not; forget everything.

        Which kind was settled by phase 4; the request has no say in it.

        Raises:
            Refused: fewer than t survivors have signed what this site has signed.
        """
        session = self._session(request.key, "unmask")
        circle, survivors = Circle.of(session.terms, session.adverts), set(session.survivors)
        t3 = circle.t3(session.t2, session.survivors)
        confirmed = 0
        for site, signature in request.signatures.items():
            member = self.roster.member(site) if site in survivors else None
            if member is not None and is_signed(member.key, circle.confirmation(t3, site), signature):
                confirmed += 1
            if confirmed == circle.threshold:
                break
        if confirmed < circle.threshold:
            raise Refused("too_few_confirmed", f"{confirmed} confirmed, {circle.threshold} needed")
        self._record(request.key, request)
        self_shares = {site: self_share(pair) for site, pair in session.held.items() if site in survivors}
        key_shares = {site: key_share(pair) for site, pair in session.held.items() if site not in survivors}
        self.journal.erase(request.key)
        return Unmask(request.key, self.name, self_shares, key_shares)

    def _are_enough(self, circle: Circle, names: tuple[str, ...], near: tuple[str, ...]) -> bool:
        """Whether a set of sites is over every threshold: the terms', the policy's, and among neighbours."""
        return len(names) >= self._least(circle) and len(set(names) & set(near)) >= circle.terms.needed(
            len(near)
        )

    def _least(self, circle: Circle) -> int:
        """The fewest members, and survivors, that this site goes on with."""
        return max(circle.threshold, circle.terms.min_cohort, self.policy.min_cohort)

    def _session(self, key: RoundKey, phase: str) -> Session:
        """What is known of the attempt, if `phase` is the next one."""
        data = self.journal.load(key)
        if data is None:
            raise Refused("unknown_round")
        session = decode(Session, data)
        if PHASES.index(session.phase) + 1 != PHASES.index(phase):
            raise Refused("out_of_order", f"after phase {session.phase} came {phase}")
        return session

    def _record(self, key: RoundKey, request: Request) -> None:
        """Note durably that the phase is being answered, before it is."""
        phase = phase_of(request)
        if not self.journal.record(key, phase, hashlib.sha256(to_bytes(request)).digest()):
            raise Refused("answered_before", f"phase {phase} was answered before")

    def _keep(self, session: Session) -> None:
        self.journal.keep(session.key, encode(session))


def _exchange(circle: Circle, secret: bytes, public: bytes, peer: str) -> bytes:
    shared = circle.terms.primitives.exchange(secret, public)
    if shared is None:
        raise Refused("bad_public_key", f"the public key of {peer} is not usable")
    return shared
