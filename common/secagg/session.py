"""What a site knows of one attempt between two phases, and the digests that both sides compute alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clinimeta.common.secagg import graph
from clinimeta.common.secagg.messages import Advert
from clinimeta.common.secagg.packing import encode
from clinimeta.common.secagg.shamir import SHARE_BYTES
from clinimeta.common.secagg.terms import RoundKey, Terms


@dataclass(frozen=True, slots=True)
class Session:
    """A site's state after it answered `phase`. Frozen: a phase makes a new one, and the journal keeps it.

    `channel_secret`, `mask_secret` and `self_seed` (32 bytes each) go as soon as they are used. `held` has
    the two shares (66 bytes) that each member gave to this site, its own among them.
    """

    phase: str
    terms: Terms
    advert: Advert
    channel_secret: bytes = field(repr=False)
    mask_secret: bytes = field(repr=False)
    self_seed: bytes = field(default=b"", repr=False)
    adverts: tuple[Advert, ...] = ()
    held: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    members: tuple[str, ...] = ()
    t2: bytes = b""
    survivors: tuple[str, ...] = ()

    @property
    def key(self) -> RoundKey:
        """Which conversation this is."""
        return self.terms.key


@dataclass(frozen=True, slots=True)
class Circle:
    """All who advertised, and T1 = H("adverts", td, adverts): from here on everybody has the same view."""

    terms: Terms
    adverts: Mapping[str, Advert]
    t1: bytes
    ordered: tuple[str, ...]

    @staticmethod
    def of(terms: Terms, adverts: Sequence[Advert]) -> "Circle":
        """The circle of these adverts, which are in order of their names."""
        suite = terms.primitives
        t1 = suite.digest("adverts", terms.digest, *(encode(advert) for advert in adverts))
        by_name = {advert.site: advert for advert in adverts}
        return Circle(terms, by_name, t1, graph.order(suite, t1, by_name))

    @property
    def threshold(self) -> int:
        """How many sites must survive, and confirm: t of all that advertised."""
        return self.terms.needed(len(self.adverts))

    def neighbours(self, site: str) -> tuple[str, ...]:
        """With whom a site shares masks."""
        return graph.neighbours(site, self.ordered, self.terms.degree)

    def holders(self, site: str) -> tuple[str, ...]:
        """Who holds shares of a site's secrets: its neighbours and itself, in order of name."""
        return tuple(sorted((*self.neighbours(site), site)))

    def points(self) -> dict[str, int]:
        """Where each site's shares are taken: its rank among the names, from 1."""
        return {site: rank for rank, site in enumerate(sorted(self.adverts), start=1)}

    def commitment(self, site: str, self_seed: bytes) -> bytes:
        """H("b", T1, site, b): lets the coordinator recognise a self-mask seed put together from shares."""
        return self.terms.primitives.digest("b", self.t1, site.encode(), self_seed)

    def share_context(self, sender: str, receiver: str) -> bytes:
        """What a sealed share is bound to, beside its key."""
        return self.terms.primitives.digest("share", self.t1, sender.encode(), receiver.encode())

    def t2(self, model_digest: bytes, members: Sequence[str]) -> bytes:
        """T2 = H("masked", T1, model digest, members); a mask under another T2 does not cancel."""
        names = (name.encode() for name in members)
        return self.terms.primitives.digest("masked", self.t1, model_digest, *names)

    def t3(self, t2: bytes, survivors: Sequence[str]) -> bytes:
        """T3 = H("survivors", T2, survivors)."""
        return self.terms.primitives.digest("survivors", t2, *(name.encode() for name in survivors))

    def confirmation(self, t3: bytes, site: str) -> bytes:
        """What a site signs in phase `confirm`."""
        return self.terms.primitives.digest("confirm", t3, site.encode())

    def pair_key(self, shared: bytes, t2: bytes, a: str, b: str) -> bytes:
        """The key of the mask that two sites share; the one that comes first by name adds it."""
        return self.terms.primitives.derive(shared, t2, "pair", min(a, b), max(a, b))

    def self_key(self, self_seed: bytes, t2: bytes, site: str) -> bytes:
        """The key of the mask that a site alone adds."""
        return self.terms.primitives.derive(self_seed, t2, "self", site)


def advert_message(terms: Terms, site: str, channel_key: bytes, mask_key: bytes, nonce: bytes) -> bytes:
    """What a site signs in phase `advert`."""
    return terms.primitives.digest("advert", terms.digest, site.encode(), channel_key, mask_key, nonce)


def self_share(pair: bytes) -> bytes:
    """Of the two shares that one site gave to another, that of its self-mask seed."""
    return pair[:SHARE_BYTES]


def key_share(pair: bytes) -> bytes:
    """Of the two shares that one site gave to another, that of its mask key."""
    return pair[SHARE_BYTES:]
