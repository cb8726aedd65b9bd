"""The conversation over a Grid: who is known by which name, what comes back, and how long one waits."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import structlog
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.app import client_app
from clinimeta.client.site import Site
from clinimeta.common.codec import encode
from clinimeta.common.flower_records import from_flower, to_flower
from clinimeta.common.records import (
    Introduction,
    IntroductionOrder,
    MetaGradient,
    MetaGradientOrder,
    Order,
    Refusal,
    Reply,
)
from clinimeta.common.study import Faults
from clinimeta.common.tasks.table import Records
from clinimeta.server.aggregation import Limits
from clinimeta.server.app import fresh_nonce
from clinimeta.server.flow import Failure, Flow, Orders, Replies, meta_round
from clinimeta.server.link import Clock, Link, WallClock, quorum_of
from clinimeta.simulations.failures import FaultPlan
from clinimeta.simulations.loopback import LoopbackGrid, VirtualClock

NODES = ("bern", "graz", "ulm")
PARAMS = {"w": torch.tensor([1.0, 2.0])}
Speaks = Callable[[Order, str], Reply | Order | RecordDict | None]
"""What a node answers to an order; None raises within its ClientApp."""


def honest(order: Order, node: str) -> Reply:
    if isinstance(order, IntroductionOrder):
        return Introduction(order.nonce, node, "clinimeta 0", 20, 49)
    assert isinstance(order, MetaGradientOrder)
    return MetaGradient(order.nonce, order.run, order.round, node, 2.0, PARAMS, {})


def clients(odd: Mapping[str, Speaks]) -> ClientApp:
    """A ClientApp for all nodes: those in `odd` say what they are told to, the others are honest."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        node = str(context.node_config["site"])
        order = from_flower(message.content)
        said = odd.get(node, honest)(order, node)  # type: ignore[arg-type]  # this side gets orders only
        content = said if isinstance(said, RecordDict) else to_flower(said)  # type: ignore[arg-type]
        return Message(content, reply_to=message)

    app.query("introduction")(handle)
    app.train("meta_gradient")(handle)
    return app


def grid_of(odd: Mapping[str, Speaks] | None = None, **options: Any) -> LoopbackGrid:
    return LoopbackGrid(
        clients(odd or {}),
        {node: {"site": node} for node in NODES},
        options.pop("clock", VirtualClock()),
        **options,
    )


def link_of(grid: Grid, clock: Clock, *, deadline_s: float = 60.0, poll_s: float = 7.0) -> Link:
    return Link(grid, clock, deadline_s=deadline_s, poll_s=poll_s)


def introduced(odd: Mapping[str, Speaks] | None = None, **options: Any) -> tuple[Link, LoopbackGrid]:
    """A link to nodes that have introduced themselves honestly and are `odd` from then on."""
    later = {
        node: lambda order, name, speaks=speaks: (
            honest(order, name) if isinstance(order, IntroductionOrder) else speaks(order, name)
        )
        for node, speaks in (odd or {}).items()
    }
    grid = grid_of(later, **options)
    link = link_of(grid, grid.clock)
    link.introduce(fresh_nonce)
    return link, grid


def ask(orders: Orders, *more: Orders) -> Flow[list[Replies]]:
    """A flow that sends these orders one after the other, and returns all replies."""
    heard: list[Replies] = []
    for each in (orders, *more):
        replies = yield each
        heard.append(replies)
    return heard


def order(number: int = 1) -> MetaGradientOrder:
    return MetaGradientOrder(f"nonce-{number}", "run", number, b"plan", PARAMS)


# Introductions


def test_sites_are_known_by_the_names_they_give() -> None:
    clock = VirtualClock()
    link = link_of(grid_of(), clock)
    assert link.sites == []
    found = link.introduce(fresh_nonce)
    assert list(found) == link.sites == list(NODES)
    assert all(found[site].site == site for site in NODES)
    assert clock.now() == 0.0


def test_each_introduction_is_asked_for_under_a_nonce_of_its_own() -> None:
    nonces: list[str] = []

    def listening(order: Order, node: str) -> Reply:
        nonces.append(order.nonce)
        return honest(order, node)

    link_of(grid_of(dict.fromkeys(NODES, listening)), VirtualClock()).introduce(fresh_nonce)
    assert len(set(nonces)) == len(NODES)


ODD: dict[str, Speaks] = {
    "a foreign nonce": lambda order, node: replace(honest(order, node), nonce="foreign"),
    "a refusal": lambda order, node: Refusal(order.nonce, node, "internal", "no"),
    "another answer": lambda order, node: MetaGradient(order.nonce, "run", 1, node, 1.0, PARAMS, {}),
    "its own order": lambda order, _node: order,
    "no record": lambda _order, _node: RecordDict({"config": ConfigRecord({"lr": 0.1})}),
}


@pytest.mark.parametrize("name", ODD)
def test_a_node_that_does_not_introduce_itself_is_left_out(name: str) -> None:
    link = link_of(grid_of({"graz": ODD[name]}), VirtualClock())
    assert list(link.introduce(fresh_nonce)) == ["bern", "ulm"]
    assert link.sites == ["bern", "ulm"]


def test_two_nodes_that_claim_one_name_are_both_left_out_and_logged() -> None:
    link = link_of(grid_of({"graz": lambda order, _node: honest(order, "ulm")}), VirtualClock())
    with structlog.testing.capture_logs() as logs:
        assert list(link.introduce(fresh_nonce)) == ["bern"]
    assert link.sites == ["bern"]
    assert [(log["site"], log["nodes"]) for log in logs] == [("ulm", 2)]


def connecting(monkeypatch: pytest.MonkeyPatch, at_s: Mapping[str, float]) -> LoopbackGrid:
    """A grid whose nodes come online at these times."""
    grid = grid_of()
    of_name = dict(zip(NODES, grid.get_node_ids(), strict=True))

    def online(_grid: LoopbackGrid) -> list[int]:
        return [node for name, node in of_name.items() if at_s.get(name, math.inf) <= grid.clock.now()]

    monkeypatch.setattr(LoopbackGrid, "get_node_ids", online)
    return grid


def test_nodes_that_connect_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = connecting(monkeypatch, {"bern": 0.0, "graz": 10.0, "ulm": 15.0})
    link = link_of(grid, grid.clock)
    assert list(link.introduce(fresh_nonce, expected=3)) == list(NODES)
    assert grid.clock.now() == 21.0  # the first look after 15 s, every 7 s


def test_with_as_many_nodes_as_expected_nobody_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = connecting(monkeypatch, {"bern": 0.0, "graz": 0.0, "ulm": 1.0})
    assert list(link_of(grid, grid.clock).introduce(fresh_nonce, expected=2)) == ["bern", "graz"]
    assert grid.clock.now() == 0.0


@pytest.mark.parametrize("there", [(), ("graz",), ("bern", "ulm")], ids=str)
def test_at_the_deadline_those_who_are_there_begin(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]
) -> None:
    grid = connecting(monkeypatch, dict.fromkeys(there, 0.0))
    link = link_of(grid, grid.clock)
    assert tuple(link.introduce(fresh_nonce, expected=3)) == there
    assert grid.clock.now() == 60.0


def test_a_node_that_is_silent_is_waited_for_until_the_deadline_and_left_out() -> None:
    clock = VirtualClock()
    grid = grid_of(clock=clock, faults=FaultPlan(Faults(silent=1.0)))
    assert link_of(grid, clock).introduce(fresh_nonce) == {}
    assert clock.now() == 60.0


# A conversation


def test_each_order_goes_to_the_site_that_it_is_for() -> None:
    link, _ = introduced()
    orders = {site: replace(order(), nonce=f"for {site}") for site in ("ulm", "bern")}
    (replies,) = link.converse(ask(orders))
    assert set(replies) == {"ulm", "bern"}
    for site, reply in replies.items():
        assert isinstance(reply, MetaGradient)
        assert (reply.site, reply.nonce) == (site, f"for {site}")


def test_a_flow_may_ask_several_times_and_returns_its_result() -> None:
    link, _ = introduced()
    first, second = link.converse(ask({"ulm": order(1)}, {"bern": order(2), "graz": order(2)}))
    assert [sorted(first), sorted(second)] == [["ulm"], ["bern", "graz"]]


def test_a_flow_that_asks_nobody_is_answered_at_once() -> None:
    clock = VirtualClock()
    link, _ = introduced(clock=clock)
    assert link.converse(ask({})) == [{}]
    assert clock.now() == 0.0


def test_a_flows_own_error_comes_through() -> None:
    def failing() -> Flow[None]:
        yield {}
        raise LookupError("the flow's own")

    with pytest.raises(LookupError, match="the flow's own"):
        introduced()[0].converse(failing())


def test_an_error_of_flowers_is_a_failure_that_names_its_code_alone() -> None:
    link, grid = introduced()
    grid.faults = FaultPlan(Faults(error=1.0))
    (replies,) = link.converse(ask({"ulm": order()}))
    assert replies == {"ulm": Failure("Flower error 2")}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"config": ConfigRecord({"lr": 0.1})}),
        RecordDict(
            {
                "fields": ConfigRecord({**to_flower(Refusal("n", "ulm", "c", "r"))["fields"], "version": 2}),
            }
        ),
    ],
    ids=["nothing", "foreign records", "another version"],
)
def test_a_reply_that_cannot_be_decoded_is_a_failure_and_ends_nothing(content: RecordDict) -> None:
    link, _ = introduced({"ulm": lambda _order, _node: content})
    (replies,) = link.converse(ask({site: order() for site in NODES}))
    assert isinstance(replies["ulm"], Failure)
    assert replies["ulm"].reason.startswith("unreadable: ")
    assert isinstance(replies["bern"], MetaGradient)
    assert isinstance(replies["graz"], MetaGradient)


def test_an_order_in_a_replys_place_is_refused_and_the_round_goes_on() -> None:
    link, _ = introduced({"ulm": lambda order, _node: order})
    flow = meta_round(
        "run", 1, b"plan", PARAMS, NODES, quorum=2, attempts=1, limits=Limits(1e4, 1e3), nonce=fresh_nonce
    )
    done = link.converse(flow)
    assert done.aggregate.accepted == ("bern", "graz")
    assert list(done.aggregate.refused) == ["ulm"]


def test_a_refusal_is_a_reply() -> None:
    link, _ = introduced({"ulm": lambda order, node: Refusal(order.nonce, node, "internal", "no")})
    (replies,) = link.converse(ask({"ulm": order()}))
    assert replies == {"ulm": Refusal("nonce-1", "ulm", "internal", "no")}


# Waiting


def test_with_all_replies_there_nobody_waits() -> None:
    link, grid = introduced()
    link.converse(ask({site: order() for site in NODES}))
    assert grid.clock.now() == 0.0


@pytest.mark.parametrize(
    ("slow_s", "seen_s"), [(0.5, 7.0), (7.0, 7.0), (7.5, 14.0), (59.0, 60.0), (60.0, 60.0)]
)
def test_a_reply_within_the_deadline_is_seen_at_the_next_look(slow_s: float, seen_s: float) -> None:
    link, grid = introduced()
    grid.faults, grid.slow_s = FaultPlan(Faults(slow=1.0)), slow_s
    (replies,) = link.converse(ask({site: order() for site in NODES}))
    assert set(replies) == set(NODES)
    assert grid.clock.now() == seen_s


@pytest.mark.parametrize("fault", [Faults(silent=1.0), Faults(slow=1.0)], ids=["silent", "too slow"])
def test_who_does_not_answer_by_the_deadline_is_missing(fault: Faults) -> None:
    link, grid = introduced()
    grid.faults, grid.slow_s = FaultPlan(fault), 60.5
    assert link.converse(ask({site: order() for site in NODES})) == [{}]
    assert grid.clock.now() == 60.0


def test_a_late_reply_is_not_taken_for_an_answer_to_the_next_order() -> None:
    """It arrives while the second order is out; the second order's own reply is later still."""
    link, grid = introduced()
    grid.faults, grid.slow_s = FaultPlan(Faults(slow=1.0)), 90.0
    first, second = link.converse(ask({"ulm": order(1)}, {"ulm": order(2)}))
    assert (first, second) == ({}, {})
    assert grid.clock.now() == 120.0


def test_an_order_lives_as_long_as_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lives: list[float] = []
    push = LoopbackGrid.push_messages

    def watched(grid: LoopbackGrid, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        lives.extend(message.metadata.ttl for message in sent)
        return push(grid, sent)

    monkeypatch.setattr(LoopbackGrid, "push_messages", watched)
    link_of(grid_of(), VirtualClock(), deadline_s=42.0).introduce(fresh_nonce)
    assert lives == [42.0] * 3


# What a Grid may do


def test_a_message_that_nobody_waits_for_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid that hands out an old round's reply with each look."""
    link, _ = introduced()
    pull = LoopbackGrid.pull_messages

    def chatty(grid: LoopbackGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        old = Message(to_flower(order(0)), 1, "train.meta_gradient")
        old.metadata.__dict__["_message_id"] = "message-of-old"
        stray = Message(to_flower(honest(order(0), "graz")), reply_to=old)
        return [stray, *pull(grid, message_ids), stray]

    monkeypatch.setattr(LoopbackGrid, "pull_messages", chatty)
    (replies,) = link.converse(ask({"ulm": order()}))
    assert list(replies) == ["ulm"]
    assert isinstance(replies["ulm"], MetaGradient)
    assert (replies["ulm"].nonce, replies["ulm"].site) == ("nonce-1", "ulm")


UNSENT: dict[str, Callable[[list[str]], list[Any]]] = {
    "left out": lambda ids: [ids[0], ids[2]],  # Flower's InMemoryGrid
    "None": lambda ids: [ids[0], None, ids[2]],  # Flower's HttpGrid
    "empty": lambda ids: [ids[0], "", ids[2]],
    "all left out": lambda _ids: [],  # Flower's HttpGrid where a message is too large
}


@pytest.mark.parametrize("how", UNSENT)
def test_a_site_that_cannot_be_sent_to_is_silent_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A node that has left since its introduction: the Grid has no id for the message to it."""
    link, _ = introduced()
    push, pull = LoopbackGrid.push_messages, LoopbackGrid.pull_messages

    def pushed(grid: LoopbackGrid, messages: Iterable[Message]) -> Any:
        return UNSENT[how](list(push(grid, messages)))

    def pulled(grid: LoopbackGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        assert all(isinstance(message_id, str) and message_id for message_id in wanted)
        return pull(grid, wanted)

    monkeypatch.setattr(LoopbackGrid, "push_messages", pushed)
    monkeypatch.setattr(LoopbackGrid, "pull_messages", pulled)
    (replies,) = link.converse(ask({site: replace(order(), nonce=site) for site in NODES}))
    answered = () if how == "all left out" else ("bern", "ulm")
    assert {site: reply.nonce for site, reply in replies.items() if isinstance(reply, MetaGradient)} == {
        site: site for site in answered
    }
    assert "graz" not in replies


# Traffic


def test_traffic_counts_the_payload_of_orders_and_answers() -> None:
    link, _ = introduced()
    down, up = link.traffic.down, link.traffic.up
    assert down == sum(encode(IntroductionOrder(fresh_nonce())).size for _ in NODES)
    assert up == sum(encode(Introduction(fresh_nonce(), node, "clinimeta 0", 20, 49)).size for node in NODES)
    link.converse(ask({"ulm": order()}))
    assert link.traffic.down - down == encode(order()).size
    assert link.traffic.up - up == encode(honest(order(), "ulm")).size


def test_an_answer_that_never_came_is_no_traffic_but_its_order_is() -> None:
    link, grid = introduced()
    down, up = link.traffic.down, link.traffic.up
    for faults in (Faults(silent=1.0), Faults(error=1.0)):
        grid.faults = FaultPlan(faults)
        link.converse(ask({"ulm": order()}))
    assert link.traffic.down - down == 2 * encode(order()).size
    assert link.traffic.up == up


# Sites of ours


def test_real_sites_introduce_themselves_and_say_no_in_words() -> None:
    def open_site(context: Context) -> Site:
        name = str(context.node_config["site"])
        return Site(name, Records(f"{name}.csv", {"age": [str(i) for i in range(33)]}))

    clock = VirtualClock()
    link = link_of(LoopbackGrid(client_app(open_site), {n: {"site": n} for n in NODES}, clock), clock)
    found = link.introduce(fresh_nonce)
    assert {(i.rows_from, i.rows_to) for i in found.values()} == {(20, 49)}
    assert all(introduction.software.startswith("clinimeta ") for introduction in found.values())
    (replies,) = link.converse(ask({"ulm": order()}))
    assert isinstance(replies["ulm"], Refusal)
    assert (replies["ulm"].code, replies["ulm"].nonce) == ("bad_plan", "nonce-1")


# Small parts


@given(share=st.floats(0, 1, exclude_min=True), cohort=st.integers(0, 1000))
def test_a_quorum_is_the_share_rounded_up_and_never_nobody(share: float, cohort: int) -> None:
    quorum = quorum_of(share, cohort)
    assert 1 <= quorum <= max(1, cohort)
    assert quorum >= share * cohort
    assert quorum == 1 or quorum - 1 < share * cohort


@pytest.mark.parametrize(("share", "cohort", "quorum"), [(1.0, 7, 7), (0.5, 7, 4), (0.5, 6, 3), (1e-9, 7, 1)])
def test_a_quorum_by_hand(share: float, cohort: int, quorum: int) -> None:
    assert quorum_of(share, cohort) == quorum


def test_a_nonce_is_fresh() -> None:
    drawn = {fresh_nonce() for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(len(bytes.fromhex(nonce)) == 16 for nonce in drawn)


def test_the_wall_clock_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    clock = WallClock()
    assert isinstance(clock, Clock)
    assert isinstance(VirtualClock(), Clock)
    assert math.isclose(clock.now(), time.monotonic(), abs_tol=5.0)
    clock.sleep(1.5)
    assert slept == [1.5]
