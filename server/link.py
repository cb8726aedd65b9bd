"""Hold a flow's conversation over Flower's Grid: orders out, replies in, until all are there or the deadline.

Our own loop instead of Flower's `send_and_receive`, because a lost message never comes back and one
odd reply must not end the run.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import structlog
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from clinimeta.common.codec import decode
from clinimeta.common.errors import RecordError
from clinimeta.common.flower_records import MESSAGE_TYPES, checkpoint_of, envelope_of, is_from, to_flower
from clinimeta.common.receipts import Checkpoint
from clinimeta.common.records import Introduction, IntroductionOrder, Order, Reply
from clinimeta.server.flow import Failure, Flow, Nonce, Orders, Replies
from clinimeta.server.observing import QUIET, Arrived, Asked, Observer, Silent

R = TypeVar("R")
V = TypeVar("V")
log = structlog.get_logger()

AWAY = ErrorCode.NODE_UNAVAILABLE
LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""An order or an answer is gone from the SuperLink, as after an upload that was broken off."""
LOOK_S = 2.0
"""How often it is looked whether a hospital has started anew while its answer is awaited."""


@runtime_checkable
class Clock(Protocol):
    """Time as an argument, so that a test need not wait."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class WallClock:
    """The real one."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for real."""
        time.sleep(seconds)


@dataclass(slots=True)
class Traffic:
    """Payload bytes since the link was opened."""

    down: int = 0
    up: int = 0


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A hospital as it was enrolled: which node of Flower's it is, and the public key that it signs with."""

    node: int
    key: bytes


class Link:
    """The coordinator's end of the wire: sites by name over a Flower Grid.

    Where `enrolled` says who takes part, each answer must be signed by the hospital that was asked, and a
    hospital is asked whether it is there at the moment or not; `witness` hears of the checkpoints of their
    ledgers, `observer` of all that is asked of sites with names, and answered. Else (in a simulation) nodes
    say who they are.
    """

    def __init__(
        self,
        grid: Grid,
        clock: Clock,
        *,
        deadline_s: float,
        poll_s: float,
        enrolled: Mapping[str, Enrolled] | None = None,
        witness: Callable[[str, Checkpoint], None] = lambda _site, _checkpoint: None,
        observer: Observer = QUIET,
    ) -> None:
        self._grid, self._clock = grid, clock
        self._deadline_s, self._poll_s = deadline_s, poll_s
        self._nodes: dict[str, int] = {site: one.node for site, one in (enrolled or {}).items()}
        self._keys = None if enrolled is None else {one.node: one.key for one in enrolled.values()}
        self._names = {node: site for site, node in self._nodes.items()}
        self._witness, self._observer = witness, observer
        self.traffic = Traffic()

    @property
    def sites(self) -> list[str]:
        """The names of the sites that introduced themselves, sorted."""
        return sorted(self._nodes)

    def introduce(self, nonce: Nonce, *, expected: int = 1) -> dict[str, Introduction]:
        """Ask every node who it is. Two nodes that claim one name are both left out.

        Nodes may connect after the run has begun: waits until `expected` are there, or the deadline.
        """
        if self._keys is not None:
            return self._introduce_enrolled(nonce)
        end = self._clock.now() + self._deadline_s
        while len(nodes := list(self._grid.get_node_ids())) < expected and self._clock.now() < end:
            self._clock.sleep(min(self._poll_s, end - self._clock.now()))
        orders = {node: IntroductionOrder(nonce()) for node in nodes}
        replies = self._exchange(orders)
        known: dict[str, Introduction] = {}
        claims: dict[str, list[int]] = {}
        for node, order in orders.items():
            reply = replies.get(node)
            if isinstance(reply, Introduction) and reply.nonce == order.nonce:
                known[reply.site] = reply
                claims.setdefault(reply.site, []).append(node)
        for site, claimants in claims.items():
            if len(claimants) > 1:
                log.warning("one name, several nodes: left out", site=site, nodes=len(claimants))
        self._nodes = {site: claimants[0] for site, claimants in claims.items() if len(claimants) == 1}
        self._names = {node: site for site, node in self._nodes.items()}
        return {site: known[site] for site in self.sites}

    def _introduce_enrolled(self, nonce: Nonce) -> dict[str, Introduction]:
        there = set(self._grid.get_node_ids())
        orders = {node: IntroductionOrder(nonce()) for node in sorted(self._names) if node in there}
        replies = self._exchange(orders) if orders else {}
        known = {}
        for node, reply in replies.items():
            site = self._names[node]
            if isinstance(reply, Introduction) and (reply.nonce, reply.site) == (orders[node].nonce, site):
                known[site] = reply
        return known

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._clock.sleep(seconds)

    def converse(self, flow: Flow[R]) -> R:
        """Drive a flow to its end.

        Raises:
            QuorumError: the flow's own, where too few sites answer.
        """
        try:
            orders: Orders = next(flow)
            while True:
                by_node = self._exchange({self._nodes[site]: order for site, order in orders.items()})
                replies: Replies = {
                    site: by_node[self._nodes[site]] for site in orders if self._nodes[site] in by_node
                }
                orders = flow.send(replies)
        except StopIteration as finished:
            result: R = finished.value
            return result

    def _exchange(self, orders: Mapping[int, Order]) -> dict[int, Reply | Failure]:
        """Node -> what it answered; a node that did not answer in time is missing.

        Flower delivers a message once, and a hospital that starts again has lost it: it is sent again then;
        so it is, once, where Flower itself has lost it.
        """
        end = self._clock.now() + self._deadline_s
        active = self._active()
        waiting = self._push(orders, end)
        open_nodes = set(waiting.values())
        replies: dict[int, Reply | Failure] = {}
        lost: set[int] = set()
        look_at = self._clock.now() + LOOK_S
        while open_nodes:
            new: dict[int, int] = {}
            for message in self._pull([key for key, node in waiting.items() if node in open_nodes]):
                # Errors come from the SuperLink's own node id, so a reply is known by what it replies to.
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node not in open_nodes:
                    continue
                if message.has_error() and message.error.code in LOST and node not in lost:
                    lost.add(node)
                    waiting |= self._push({node: orders[node]}, end)
                    continue
                before_it = self.traffic.up
                replies[node] = self._read(message, node)
                new[node] = self.traffic.up - before_it
                open_nodes.discard(node)
            if new:
                asked = self._by_name({node: orders[node] for node in new})
                said = self._by_name({node: replies[node] for node in new})
                self._observer.tell(Arrived(asked, said, self._by_name(new)))
            now = self._clock.now()
            if not open_nodes or now >= end:
                break
            if now >= look_at and self._keys is not None:
                before, active, look_at = active, self._active(), now + LOOK_S
                back = [n for n in sorted(open_nodes) if active.get(n, "") != before.get(n, "")]
                if back:
                    log.info("asked again: started anew", sites=[self._names[node] for node in back])
                    waiting |= self._push({node: orders[node] for node in back}, end)
            self._clock.sleep(min(self._poll_s, end - now))
        if silent := {node: order for node, order in orders.items() if node not in replies}:
            self._observer.tell(Silent(self._by_name(silent)))
        return replies

    def _by_name(self, values: Mapping[int, V]) -> dict[str, V]:
        """Site -> value, of nodes whose names are known."""
        return {self._names[node]: value for node, value in values.items() if node in self._names}

    def _active(self) -> dict[int, str]:
        """Node -> since when it is there; of enrolled hospitals only."""
        if self._keys is None:
            return {}
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _push(self, orders: Mapping[int, Order], end: float) -> dict[str, int]:
        """Message id -> node, of those that could be sent."""
        messages = [
            Message(
                to_flower(order),
                dst_node_id=node,
                message_type=MESSAGE_TYPES[type(order)],
                ttl=max(1.0, end - self._clock.now()),
            )
            for node, order in orders.items()
        ]
        sizes = [envelope_of(message.content).size for message in messages]
        self.traffic.down += sum(sizes)
        down = self._by_name(dict(zip(orders, sizes, strict=True)))
        self._observer.tell(Asked(self._by_name(orders), down))
        # A node that has left gets no id, or none at all in its place; the message itself knows its own.
        pushed = {message_id for message_id in self._grid.push_messages(messages) if message_id}
        return {
            message.metadata.message_id: node
            for message, node in zip(messages, orders, strict=True)
            if message.metadata.message_id in pushed
        }

    def _read(self, message: Message, node: int) -> Reply | Failure:
        if message.has_error():
            code = message.error.code
            return Failure("not connected" if code == AWAY else f"Flower error {code}")
        try:
            if self._keys is not None:
                if not is_from(message.content, self._keys[node]):
                    log.warning(
                        "an answer is not signed by the hospital that was asked", site=self._names[node]
                    )
                    return Failure("not signed by this hospital")
                made = checkpoint_of(message.content)
                if made is None or not made.is_of(self._keys[node]):
                    return Failure("without a checkpoint of the hospital's ledger")
                self._witness(self._names[node], made)
            envelope = envelope_of(message.content)
            self.traffic.up += envelope.size
            record = decode(envelope)
        except RecordError as error:
            return Failure(f"unreadable: {error}")
        if isinstance(record, Reply):
            return record
        return Failure("an order in a reply's place")

    def _pull(self, ids: list[str]) -> list[Message]:
        """What has arrived. A reply that Flower cannot put together again must not hold up the others."""
        try:
            return list(self._grid.pull_messages(ids))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            if len(ids) == 1:
                log.warning("an answer cannot be read and is left out", error=type(error).__name__)
                return []
            half = len(ids) // 2
            return self._pull(ids[:half]) + self._pull(ids[half:])


def quorum_of(share: float, cohort: int) -> int:
    """How many usable answers a round needs.

    >>> quorum_of(0.5, 5), quorum_of(0.01, 5)
    (3, 1)
    """
    return max(1, math.ceil(share * cohort))
