"""`clinimeta bench secagg`: what secure aggregation costs a hospital and the coordinator, in CPU time.

A round is played in full, once a setting, and must open to the whole numbers of the survivors. Then one
hospital's five phases are replayed (training and network apart), and the coordinator's two heavy steps:
adding up the masked words, and taking the masks off. Beside them, in turns: AES-256-CTR keystream of the
same length, which no such protocol can do without; a plain sum of the same vectors as float32; and Flower's
SecAgg+.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinimeta.common.secagg import coordinator
from clinimeta.common.secagg.coordinator import Answers, Confirmed, Opened, Shared, Summed
from clinimeta.common.secagg.identity import Identity, Member, Roster
from clinimeta.common.secagg.journal import MemoryJournal
from clinimeta.common.secagg.masks import apply_masks, stream
from clinimeta.common.secagg.messages import Request, to_bytes
from clinimeta.common.secagg.policy import Policy
from clinimeta.common.secagg.ring import Contribution, Ring, rounding_key
from clinimeta.common.secagg.site import Site
from clinimeta.common.secagg.terms import THRESHOLDS, Column, Terms
from clinimeta.simulations.benchmarks import secagg_flower
from clinimeta.simulations.benchmarks.measuring import (
    Timing,
    UnequalWorkError,
    check_equal,
    take_turns,
    timed,
)

TODAY = date(2026, 11, 23)
PLAN, MODEL = hashlib.sha256(b"plan").digest(), hashlib.sha256(b"model").digest()
BOUND = 1.0
MASKED_WORDS = 20_000_000_000
"""Most words under masks, over all hospitals, to prepare a setting: about 15 s."""
FLOWER_SITES, FLOWER_SITES_DROPPED, FLOWER_PARAMETERS = 50, 10, 1_000_000
"""Flower's coordinator takes 15 s for 50 sites, eight times as much for 100; with drop-outs longer still."""
ONCE_S = 1.0
"""What takes longer than this is measured once."""
_BLOCK = 256 * 1024
_ZEROS = memoryview(bytes(_BLOCK))


@dataclass(frozen=True, slots=True)
class Setting:
    """So many sites with so many parameters; in turn so many drop out after they have shared secrets."""

    sites: int
    parameters: int
    dropped: tuple[int, ...] = (0,)


def settings(*, quick: bool) -> list[Setting]:
    """The usual ones; those that would take too long to prepare are left out."""
    sizes = (3, 10, 20) if quick else (3, 10, 50, 100, 200)
    lengths = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    found = [Setting(n, d, drop_outs(n)) for d in lengths for n in sizes if n * n * d <= MASKED_WORDS]
    return found if quick else [*found, Setting(10, 10_000_000, drop_outs(10))]


def drop_outs(sites: int) -> tuple[int, ...]:
    """None, 10 % and 30 %, where the threshold allows it.

    >>> drop_outs(3), drop_outs(10), drop_outs(200)
    ((0,), (0, 1, 3), (0, 20, 60))
    """
    most = sites - THRESHOLDS["two_thirds"](sites)
    return tuple(sorted({k for k in (0, sites // 10, sites * 3 // 10) if k <= most}))


def measure(chosen: Sequence[Setting], turns: int, notify: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each setting and number of drop-outs.

    Raises:
        UnequalWorkError: a sum is not what the survivors have put in.
    """
    rows: list[dict[str, Any]] = []
    for setting in chosen:
        notify(f"{setting.sites} sites, {setting.parameters:,} parameters")
        begun = begin(setting.sites, setting.parameters)
        for dropped in setting.dropped:
            rows.append(_row(begun, dropped, turns))
    return rows


@dataclass(slots=True)
class Tape:
    """Random bytes that are kept, so that a site's round can be replayed to the bit."""

    kept: list[bytes] = field(default_factory=list, repr=False)

    def record(self, n: int) -> bytes:
        """Fresh ones."""
        self.kept.append(secrets.token_bytes(n))
        return self.kept[-1]

    def again(self) -> Callable[[int], bytes]:
        """The same ones from the beginning."""
        kept = iter(self.kept)
        return lambda _: next(kept)


@dataclass(frozen=True, slots=True)
class Begun:
    """A round up to the masked vectors of all; who drops out of it is open."""

    terms: Terms
    roster: Roster
    sites: Mapping[str, Site]
    vectors: Mapping[str, Contribution]
    watched: str
    tape: Tape
    asked: tuple[Request, ...]
    opened: Opened
    shared: Shared
    adverts: Answers
    shares: Answers
    masked: Answers

    def train(self, site: str) -> Contribution:
        """What a site adds."""
        return self.vectors[site]


@dataclass(frozen=True, slots=True)
class Finished:
    """The rest of a round that some dropped out of; `asked` of the watched site in all five phases."""

    survivors: tuple[str, ...]
    summed: Summed
    confirms: Answers
    confirmed: Confirmed
    unmasks: Answers
    asked: tuple[Request, ...]
    upload_bytes: int


def begin(n: int, parameters: int) -> Begun:
    """Play three phases among n sites."""
    names = [f"site-{i:04d}" for i in range(n)]
    identities = {name: Identity(name, secrets.token_bytes(32)) for name in names}
    members = [Member(x, identities[x].public, date(2026, 1, 1), date(2027, 12, 31)) for x in names]
    roster = Roster(1, tuple(members))
    columns = (Column("tasks", 64.0),)
    terms = Terms(
        1, "bench", 1, 0, parameters, BOUND, columns, n, min(3, n), "two_thirds", 0, roster.digest, PLAN, ()
    )
    rng, watched, tape = np.random.default_rng(0), names[n // 3], Tape()
    vectors = {
        name: Contribution(rng.uniform(-BOUND, BOUND, parameters).astype(np.float32), {"tasks": 4.0})
        for name in names
    }
    sites = {
        name: Site(
            identities[name],
            roster,
            Policy(frozenset({PLAN})),
            MemoryJournal(),
            lambda: TODAY,
            secrets.token_bytes(32),
            tape.record if name == watched else secrets.token_bytes,
        )
        for name in names
    }

    def ask(requests: Mapping[str, Request]) -> Answers:
        return {x: sites[x].answer(asked, lambda x=x: vectors[x], MODEL) for x, asked in requests.items()}  # type: ignore[misc]

    first = coordinator.advert_requests(terms, names)
    adverts = ask(first)
    opened = coordinator.collect_adverts(terms, roster, TODAY, names, adverts)
    second = coordinator.shares_requests(opened)
    shares = ask(second)
    shared = coordinator.collect_shares(opened, shares)
    third = coordinator.masked_requests(shared)
    asked = (first[watched], second[watched], third[watched])
    masked = ask(third)
    return Begun(terms, roster, sites, vectors, watched, tape, asked, opened, shared, adverts, shares, masked)


def finish(begun: Begun, dropped: int) -> Finished:
    """Play the rest without the last `dropped` sites, as often as wanted: journals are copied.

    As many sites unmask as are needed; that saves time and changes nothing for the coordinator, who uses no
    more shares.
    """
    present = sorted(begun.sites)[: len(begun.sites) - dropped]
    summed = coordinator.collect_masked(begun.shared, MODEL, {x: begun.masked[x] for x in present})
    sites = {
        x: replace(begun.sites[x], journal=_copy(begun.sites[x].journal), random_bytes=secrets.token_bytes)
        for x in present
    }
    fourth = coordinator.confirm_requests(summed)
    confirms = {x: sites[x].answer(asked) for x, asked in fourth.items()}
    confirmed = coordinator.collect_confirms(summed, begun.roster, confirms)
    fifth = coordinator.unmask_requests(confirmed)
    needed = list(fifth)[: begun.opened.circle.threshold]
    unmasks = {x: sites[x].answer(fifth[x]) for x in {*needed, begun.watched}}
    asked = (*begun.asked, fourth[begun.watched], fifth[begun.watched])
    phases = (begun.adverts, begun.shares, begun.masked, confirms, unmasks)
    upload = sum(len(to_bytes(phase[begun.watched])) for phase in phases)
    return Finished(summed.survivors, summed, confirms, confirmed, unmasks, asked, upload)


def check_exact(begun: Begun, done: Finished) -> None:
    """Whether the sum that the masks came off of is that of the survivors' whole numbers, to the bit.

    Raises:
        UnequalWorkError: it is not.
    """
    ring, expected = Ring.of(begun.terms), np.zeros(Ring.of(begun.terms).size, np.uint32)
    for name in done.survivors:
        seed = begun.sites[name].rounding_seed
        key = rounding_key(seed, begun.terms.run, begun.terms.round, name)
        expected += ring.quantise(begun.vectors[name], key)
    if not np.array_equal(coordinator.unmask(done.confirmed, done.unmasks).words, expected):
        raise UnequalWorkError("the sum is not what the survivors have put in")


def client(begun: Begun, done: Finished) -> None:
    """The watched site's five phases again, from an empty journal, with a vector that is there already.

    Raises:
        UnequalWorkError: it does not answer what it answered before.
    """
    site = replace(begun.sites[begun.watched], journal=MemoryJournal(), random_bytes=begun.tape.again())
    last = [site.answer(asked, lambda: begun.train(begun.watched), MODEL) for asked in done.asked][-1]
    if last != done.unmasks[begun.watched]:
        raise UnequalWorkError("a replayed site answers something else")


def server(begun: Begun, done: Finished) -> None:
    """The coordinator's heavy steps: add up what is there, take the masks off."""
    coordinator.collect_masked(begun.shared, MODEL, {x: begun.masked[x] for x in done.survivors})
    coordinator.unmask(done.confirmed, done.unmasks)


def checks(begun: Begun, done: Finished) -> None:
    """The coordinator's others: signatures of adverts and confirmations, and that all shares are there."""
    names = sorted(begun.sites)
    opened = coordinator.collect_adverts(begun.terms, begun.roster, TODAY, names, begun.adverts)
    coordinator.collect_shares(opened, begun.shares)
    coordinator.collect_confirms(done.summed, begun.roster, done.confirms)


def keystream(size: int, keys: Sequence[bytes]) -> None:
    """As much AES-256-CTR keystream as `size` words under each key's mask take."""
    spare = bytearray(_BLOCK + 15)
    for key in keys:
        cipher = stream(key)
        for at in range(0, 4 * size, _BLOCK):
            cipher.update_into(_ZEROS[: min(_BLOCK, 4 * size - at)], spare)


def float_sum(vectors: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """What a coordinator does who sees all."""
    total = np.zeros(len(vectors[0]), np.float32)
    for vector in vectors:
        total += vector
    return total


def _row(begun: Begun, dropped: int, turns: int) -> dict[str, Any]:
    n, size = len(begun.sites), Ring.of(begun.terms).size
    done = finish(begun, dropped)
    check_exact(begun, done)
    client(begun, done)
    keys = [secrets.token_bytes(32) for _ in range(n)]
    words = np.zeros(size, np.uint32)
    present = [begun.vectors[x].vector for x in done.survivors]
    candidates: dict[str, Callable[[], object]] = {
        "client": lambda: client(begun, done),
        "masks": lambda: apply_masks(words, keys[: n // 2], keys[n // 2 :]),
        "keystream": lambda: keystream(size, keys),
        "server": lambda: server(begun, done),
        "checks": lambda: checks(begun, done),
        "float sum": lambda: float_sum(present),
    }
    once: dict[str, Timing] = {}
    for name, call in _flower(n, dropped, present).items():
        first = timed(call)
        if first.wall_s > ONCE_S:
            once[name] = first
        else:
            candidates[name] = call
    found = {name: 1000 * t.cpu_s for name, t in (take_turns(candidates, turns) | once).items()}
    removed = len(present) * (1 + dropped)
    server_limit = 1.4 * found["keystream"] / n * removed if dropped else 3.5 * found["float sum"]
    as_floats = 4 * begun.terms.dim
    return {
        "setting": f"{begun.terms.dim:,} parameters",
        "sites": n,
        "parameters": begun.terms.dim,
        "dropped": dropped,
        "client_ms": found["client"],
        "mask_ms": found["masks"],
        "keystream_ms": found["keystream"],
        "mask_times_keystream": found["masks"] / found["keystream"],
        "client_of_goal": found["client"] / (1.6 * found["keystream"] + 0.5 * n),
        "masks_removed": removed,
        "server_ms": found["server"],
        "float_sum_ms": found["float sum"],
        "server_times_float_sum": found["server"] / found["float sum"],
        "server_of_goal": found["server"] / server_limit,
        "server_checks_ms": found["checks"],
        "upload_bytes": done.upload_bytes,
        "upload_times_float32": done.upload_bytes / as_floats,
        "upload_more_bytes_a_site": (done.upload_bytes - as_floats) / n,
        "flower_client_ms": found.get("flower client"),
        "flower_client_times": _times(found, "client"),
        "flower_server_ms": found.get("flower server"),
        "flower_server_times": _times(found, "server"),
        "turns": turns,
    }


def _flower(n: int, dropped: int, present: Sequence[NDArray[Any]]) -> dict[str, Callable[[], object]]:
    """Flower's candidates, where they end within reason; the sum of theirs is checked, too."""
    most = FLOWER_SITES_DROPPED if dropped else FLOWER_SITES
    if n > most or len(present[0]) > FLOWER_PARAMETERS:
        return {}
    threshold = THRESHOLDS["two_thirds"](n)
    coordinator_of = secagg_flower.server(present, dropped, threshold)
    if n <= FLOWER_SITES_DROPPED:
        exact = np.mean(np.stack(present), axis=0)
        error = float(np.abs(coordinator_of() - exact).max())
        check_equal("secure aggregation", {"Flower's SecAgg+": error * secagg_flower.TOLERANCE_SCALE})
    return {
        "flower client": secagg_flower.client(present[0], n, dropped, threshold),
        "flower server": coordinator_of,
    }


def _times(found: Mapping[str, float], what: str) -> float | None:
    theirs = found.get(f"flower {what}")
    return None if theirs is None else theirs / found[what]


def _copy(journal: Any) -> MemoryJournal:
    return MemoryJournal(dict(journal.entries), dict(journal.secrets))
