"""Enrolled hospitals: an answer counts with the signature of whoever was asked, for this order, and once."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog
import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clinimeta.common.flower_records import from_flower, to_flower
from clinimeta.common.receipts import Checkpoint, checkpoint
from clinimeta.common.records import Introduction, IntroductionOrder, MetaGradient, Order, Reply
from clinimeta.common.secagg.identity import Identity
from clinimeta.server import link as module
from clinimeta.server.aggregation import Limits
from clinimeta.server.app import fresh_nonce
from clinimeta.server.flow import Round, meta_round
from clinimeta.server.link import Enrolled, Link
from clinimeta.simulations.loopback import LoopbackGrid, VirtualClock

NODES = ("bern", "graz", "ulm")
PARAMS = {"w": torch.tensor([1.0, 2.0])}
IDENTITIES = {node: Identity(node, bytes([number]) * 32) for number, node in enumerate(NODES, 1)}
UNSIGNED = "not signed by this hospital"
Speaks = Callable[["Wire", Order, str], RecordDict]


def honest(order: Order, node: str) -> Reply:
    if isinstance(order, IntroductionOrder):
        return Introduction(order.nonce, node, "clinimeta 0", 20, 49)
    return MetaGradient(order.nonce, "run", order.round, node, 2.0, PARAMS, {})  # type: ignore[attr-defined]


def signed(record: Order | Reply, node: str) -> RecordDict:
    content = to_flower(record, IDENTITIES[node])
    content["proof"]["checkpoint"] = checkpoint(1, bytes(32), IDENTITIES[node]).to_bytes()
    return content


@dataclass(slots=True)
class Wire:
    """Three nodes, of which `odd` ones say something else; keeps what each said before."""

    odd: dict[str, Speaks] = field(default_factory=dict)
    said: dict[str, list[RecordDict]] = field(default_factory=dict)
    enrolled: tuple[str, ...] = NODES

    def link(self) -> Link:
        app = ClientApp()

        def handle(message: Message, context: Context) -> Message:
            node, order = str(context.node_config["site"]), from_flower(message.content)
            assert isinstance(order, Order)
            speaks = self.odd.get(node, lambda _wire, order, node: signed(honest(order, node), node))
            content = speaks(self, order, node)
            self.said.setdefault(node, []).append(content)
            return Message(content, reply_to=message)

        app.query("introduction")(handle)
        app.train("meta_gradient")(handle)
        grid = LoopbackGrid(app, {node: {"site": node} for node in NODES}, VirtualClock())
        ids = dict(zip(NODES, grid.get_node_ids(), strict=True))
        known = {site: Enrolled(ids[site], IDENTITIES[site].public) for site in self.enrolled}
        return Link(grid, grid.clock, deadline_s=60.0, poll_s=7.0, enrolled=known)


GENUINE = checkpoint(1, bytes(32), IDENTITIES["ulm"])


@pytest.mark.parametrize("given", [None, b"short", checkpoint(1, bytes(32), IDENTITIES["bern"]).to_bytes()])
def test_an_answer_brings_a_checkpoint_of_its_own_ledger(given: bytes | None) -> None:
    def speaks(_wire: Wire, order: Order, node: str) -> RecordDict:
        content = signed(honest(order, node), node)
        if given is None:
            del content["proof"]["checkpoint"]
        else:
            content["proof"]["checkpoint"] = given
        return content

    found = one_round(Wire({"ulm": speaks}).link())
    assert set(found.aggregate.refused) == {"ulm"}


def one_round(link: Link, number: int = 1) -> Round:
    limits = Limits(1e4, 1e3)
    flow = meta_round(
        "run", number, b"plan", PARAMS, NODES, quorum=1, attempts=1, limits=limits, nonce=fresh_nonce
    )
    return link.converse(flow)


def altered(record: RecordDict, **fields: Any) -> RecordDict:
    """The same message with other fields, under the old signature."""
    return RecordDict({**record, "fields": ConfigRecord({**record["fields"], **fields})})


FORGED: dict[str, Speaks] = {
    "no signature": lambda _wire, order, node: to_flower(honest(order, node)),
    "another hospital's signature": lambda _wire, order, node: signed(honest(order, node), "bern"),
    "another hospital's whole answer": lambda _wire, order, _node: signed(honest(order, "bern"), "bern"),
    "other numbers under a signature": lambda _wire, order, node: RecordDict(
        {
            **signed(honest(order, node), node),
            "tensors": signed(replace(honest(order, node), gradient={"w": torch.ones(2)}), node)["tensors"],
        }
    ),
    "another weight under a signature": lambda _wire, order, node: altered(
        signed(honest(order, node), node), weight=9.0
    ),
    "another nonce under a signature": lambda _wire, order, node: altered(
        signed(replace(honest(order, node), nonce="old"), node), nonce=order.nonce
    ),
    "a signature of nothing": lambda _wire, order, node: RecordDict(
        {**to_flower(honest(order, node)), "proof": ConfigRecord({"signature": bytes(64)})}
    ),
    "a signature that is no bytes": lambda _wire, order, node: RecordDict(
        {**to_flower(honest(order, node)), "proof": ConfigRecord({"signature": "0" * 64})}
    ),
    "a second signature beside it": lambda _wire, order, node: RecordDict(
        {
            **signed(honest(order, node), node),
            "proof": ConfigRecord({**signed(honest(order, node), node)["proof"], "more": b""}),
        }
    ),
}


def test_answers_that_hospitals_signed_count() -> None:
    link = Wire().link()
    assert list(link.introduce(fresh_nonce)) == list(NODES)
    assert one_round(link).aggregate.accepted == NODES


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_answer_is_refused_and_named(how: str) -> None:
    with structlog.testing.capture_logs() as logs:
        found = one_round(Wire({"ulm": FORGED[how]}).link())
    assert found.aggregate.accepted == ("bern", "graz")
    assert found.aggregate.refused == {"ulm": UNSIGNED}
    assert [(log["log_level"], log["site"]) for log in logs] == [("warning", "ulm")]


@pytest.mark.parametrize("how", FORGED)
def test_it_is_the_signature_that_gives_it_away(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would see it if the check were missing: without it, most forgeries pass as answers."""
    monkeypatch.setattr(module, "is_from", lambda _content, _key: True)
    monkeypatch.setattr(module, "checkpoint_of", lambda _content: GENUINE)
    monkeypatch.setattr(Checkpoint, "is_of", lambda _self, _key: True)
    found = one_round(Wire({"ulm": FORGED[how]}).link())
    assert found.aggregate.refused.get("ulm") != UNSIGNED
    assert ("ulm" in found.aggregate.accepted) == (how != "another hospital's whole answer")


def test_an_answer_in_anothers_name_is_refused_though_it_is_signed() -> None:
    wire = Wire({"ulm": lambda _wire, order, node: signed(honest(order, "bern"), node)})
    assert list(wire.link().introduce(fresh_nonce)) == ["bern", "graz"]
    found = one_round(wire.link())
    assert found.aggregate.accepted == ("bern", "graz")
    assert list(found.aggregate.refused) == ["ulm"]


def test_an_old_answer_is_refused_though_it_is_signed() -> None:
    """The same bytes as a round before: its own signature, but not this order's nonce."""
    wire = Wire()
    link = wire.link()
    one_round(link, 1)
    wire.odd["ulm"] = lambda wire, _order, node: wire.said[node][-1]
    again = one_round(link, 1)
    assert again.aggregate.accepted == ("bern", "graz")
    assert list(again.aggregate.refused) == ["ulm"]


def test_an_old_introduction_is_none() -> None:
    wire = Wire()
    link = wire.link()
    link.introduce(fresh_nonce)
    wire.odd["ulm"] = lambda wire, _order, node: wire.said[node][-1]
    assert list(link.introduce(fresh_nonce)) == ["bern", "graz"]


def test_of_two_answers_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Wire().link()
    pull = LoopbackGrid.pull_messages

    def twice(grid: LoopbackGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in pull(grid, message_ids):
            yield reply
            record = from_flower(reply.content)
            if isinstance(record, MetaGradient) and record.site == "ulm":
                second = copy.copy(reply)
                second.content = signed(replace(record, weight=1000.0), "ulm")
                yield second

    monkeypatch.setattr(LoopbackGrid, "pull_messages", twice)
    found = one_round(link)
    assert found.aggregate.accepted == NODES
    assert found.aggregate.weight == 6.0


def test_a_reply_of_another_nodes_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that claims, within its message, to reply to what another node was asked."""
    link = Wire().link()
    pull = LoopbackGrid.pull_messages

    def swapped(grid: LoopbackGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = sorted(pull(grid, message_ids), key=lambda reply: reply.metadata.src_node_id)
        asked = [reply.metadata.reply_to_message_id for reply in replies]
        for reply, other in zip(replies, asked[1:] + asked[:1], strict=True):
            reply.metadata.__dict__["_reply_to_message_id"] = other
        return replies

    monkeypatch.setattr(LoopbackGrid, "pull_messages", swapped)
    replies = link.introduce(fresh_nonce)
    assert replies == {}


def test_who_is_not_enrolled_is_not_asked() -> None:
    wire = Wire(enrolled=("bern", "graz"))
    link = wire.link()
    assert link.sites == ["bern", "graz"]
    assert list(link.introduce(fresh_nonce)) == ["bern", "graz"]
    assert set(wire.said) == {"bern", "graz"}


def test_what_cannot_be_read_is_a_failure_like_any_other() -> None:
    wire = Wire({"ulm": lambda _wire, _order, _node: RecordDict({})})
    found = one_round(wire.link())
    assert found.aggregate.refused == {"ulm": UNSIGNED}


@pytest.mark.parametrize(("times", "refused"), [(1, {}), (2, {"ulm": "Flower error 3"})])
def test_an_order_that_flower_lost_is_sent_again_once(
    times: int, refused: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Wire().link()
    pull, left = LoopbackGrid.pull_messages, [None] * times

    def losing(grid: LoopbackGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in pull(grid, message_ids):
            record = from_flower(reply.content)
            if isinstance(record, MetaGradient) and record.site == "ulm" and left:
                left.pop()
                reply = make_message(reply.metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE))
            yield reply

    monkeypatch.setattr(LoopbackGrid, "pull_messages", losing)
    found = one_round(link)
    assert found.aggregate.refused == refused
    assert found.aggregate.accepted == tuple(node for node in NODES if node not in refused)
