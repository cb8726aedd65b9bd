"""What leaves is in the ledger first, to the byte, and no record holds anything of a patient."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from flwr.supernode.runtime.run_clientapp import push_message
from guarded import masked, orders_for, plan_of, promising
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from leaving import GRADIENT, ORDERS, PLAN, REPLIES, SuperNode, asked
from ledgers import COORDINATOR, SITE

from clinimeta.client.app import client_app
from clinimeta.client.budget import Allowance, Answer, Budget
from clinimeta.client.gate import Gate, entry_of
from clinimeta.client.gate import plan_of as plan_in
from clinimeta.client.ledger import Cost, Entry, Ledger
from clinimeta.client.ledger_check import verify
from clinimeta.client.site import Site
from clinimeta.common.errors import LedgerFileError
from clinimeta.common.flower_records import checkpoint_of, from_flower, is_from, to_flower
from clinimeta.common.params import norm
from clinimeta.common.records import (
    MetaGradient,
    Order,
    Refusal,
    Reply,
)
from clinimeta.common.tasks.table import Records

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
EACH = pytest.mark.parametrize(("reply", "order"), REPLIES.values(), ids=REPLIES.keys())


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger", SITE)


def gate_of(ledger: Ledger, budget: Budget | None = None) -> Gate:
    return Gate(ledger, SITE, "hub (123)", lambda: "policy", budget, lambda: NOON)


def entry(reply: Reply, order: Order | None, **changes: Any) -> Entry:
    named = {"at": "now", "to": "hub", "policy": "p", "cost": None, "size": 10, **changes}
    return entry_of(reply, order, plan_in(order), **named)


@EACH
def test_what_flower_is_given_is_on_record_before_and_to_the_byte(
    ledger: Ledger, reply: Reply, order: Order | None
) -> None:
    gate_of(ledger).release(Refusal("", "ulm", "internal", "an earlier one"), None, asked(None))
    leaving = gate_of(ledger).release(reply, order, asked(order))
    [_, record] = ledger.records()
    written = list[int]()
    node = SuperNode(lambda: written.append(len(ledger.records())))
    push_message(cast(Any, node), leaving, Context(1, 7, {}, RecordDict(), {}))
    assert written == [2]
    assert record.entry.bytes == sum(map(len, node.objects))
    made = checkpoint_of(leaving.content)
    assert made is not None
    assert (made.number, made.hash, made.signature) == (2, record.hash, record.signature)
    assert is_from(leaving.content, SITE.public)
    assert verify(ledger.path, SITE.public, COORDINATOR.public).intact
    if not isinstance(reply, MetaGradient):  # tensors do not compare
        assert from_flower(leaving.content) == reply


@EACH
def test_an_entry_says_what_leaves_to_whom_and_under_what(
    ledger: Ledger, reply: Reply, order: Order | None
) -> None:
    gate_of(ledger).release(reply, order, asked(order))
    [record] = ledger.records()
    found = record.entry
    assert (found.at, found.to, found.policy) == (NOON.isoformat(), "hub (123)", "policy")
    assert found.outcome == (reply.code if isinstance(reply, Refusal) else "sent")
    assert found.round == getattr(order, "round", None)
    assert found.run == getattr(order, "run", "")
    named = bool(getattr(order, "plan", b""))
    assert (found.study, found.arm, found.plan) == (
        ("sepsis", "maml", PLAN.digest) if named else ("", "", "")
    )
    assert found.cost is None
    fields = {name for name in type(reply).__slots__ if name not in ("words", "answers", "gradient")}
    empty = {name for name in ("gradient", "answers") if getattr(reply, name, None) in ({}, ())}
    assert set(found.numbers) == fields | empty, "every field of the answer is there, as tensor or as number"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("introduction", "Introduction"),
        ("meta-gradient", "MetaGradient"),
        ("quantised", "Quantised"),
        ("keys", "Masking"),
        ("shares", "Masking"),
        ("masked", "masked"),
        ("calibration", "Calibration"),
        ("refusal", "Refusal"),
    ],
)
def test_a_masked_sum_is_told_from_the_keys_and_shares_around_it(name: str, kind: str) -> None:
    assert entry(*REPLIES[name]).kind == kind


def test_tensors_stand_with_shape_norm_bytes_and_the_hash_of_what_is_sent() -> None:
    reply, order = REPLIES["meta-gradient"]
    sent = {one.name: one for one in entry(reply, order).tensors}
    array = cast(ArrayRecord, to_flower(reply)["tensors"])["gradient"]
    assert set(sent) == {f"gradient.{name}" for name in GRADIENT}
    for name, tensor in GRADIENT.items():
        one = sent[f"gradient.{name}"]
        data = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        assert data in array.data
        assert (one.shape, one.bytes) == (tuple(tensor.shape), len(data))
        assert (one.norm, one.sha256) == (norm({"": tensor}), hashlib.sha256(data).hexdigest())
    kinds = {name.removeprefix("gradient."): one.kind for name, one in sent.items()}
    assert kinds == {"head.weight": "float32", "rate": "float32", "half": "bfloat16", "double": "float64"}
    assert sent["gradient.head.weight"].norm == 5.0


def test_words_and_ciphertexts_stand_with_their_bytes_and_hashes() -> None:
    [words] = entry(*REPLIES["quantised"]).tensors
    assert (words.kind, words.shape, words.norm, words.bytes) == ("whole numbers", (9,), None, 36)
    assert words.sha256 == hashlib.sha256(b"\x01\0\0\0" * 9).hexdigest()
    one, two = entry(*REPLIES["keys"]).tensors
    assert [(t.name, t.kind, t.bytes, t.norm) for t in (one, two)] == [
        ("answers.0", "masked or encrypted", 40, None),
        ("answers.1", "masked or encrypted", 7, None),
    ]
    assert two.sha256 == hashlib.sha256(b"b" * 7).hexdigest()


def test_metrics_stand_with_total_and_weight_and_what_is_not_finite_by_its_name() -> None:
    numbers = entry(*REPLIES["meta-gradient"]).numbers
    assert numbers["weight"] == 4.0
    assert numbers["metrics"] == {
        "query_loss": {"total": 1.5, "weight": 4.0},
        "query_accuracy": {"total": "inf", "weight": 4.0},
    }
    assert entry(*REPLIES["calibration"]).numbers["losses"] == [0.1, 0.2, 0.3, "inf"]
    huge = MetaGradient("", "", 1, "", 1.0, {"w": torch.tensor([1e308] * 9, dtype=torch.float64)}, {})
    [one] = entry(huge, None).tensors
    assert one.norm is None


def test_an_entry_has_the_cost_of_what_the_hospital_promised_itself(ledger: Ledger, tmp_path: Path) -> None:
    promised, trusting = promising(), plan_of(protection={"answers": "quantised", "epsilon": 4.0})
    budget = Budget.create(tmp_path / "private" / "budget", Allowance(8.0, 1e-6))
    gate = gate_of(ledger, budget)
    reply, _ = REPLIES["masked"]

    def release(plan: Any) -> None:
        order = orders_for(plan)["masking, with parameters"]
        gate.release(reply, order, asked(order))

    release(promised)
    budget.reserve(Answer(promised.digest, "run", 1, 0, "content", 20.0, 1.0), Allowance(4.0, 1e-6))
    for plan in (promised, trusting, masked()):
        release(plan)
    costs = [record.entry.cost for record in ledger.records()]
    spent = budget.spent(promised.digest)
    assert spent > 0
    assert costs == [None, Cost(spent, 1e-6, 20.0), None, None], "nothing spent here is no promise of 0"


def test_a_plan_that_cannot_be_read_is_none() -> None:
    order = replace(cast(Any, ORDERS["meta-gradient"]), plan=b"{}")
    found = entry_of(
        Refusal("", "ulm", "bad_plan", "no"),
        order,
        plan_in(order),
        at="",
        to="",
        policy="",
        cost=None,
        size=1,
    )
    assert (found.study, found.plan, found.run) == ("", "", "run")


@EACH
def test_what_cannot_be_written_down_does_not_leave(
    ledger: Ledger, reply: Reply, order: Order | None
) -> None:
    ledger.path.unlink()
    site = Site("ulm", Records("ulm.csv", {"age": ["50"]}))
    app = client_app(lambda _context: site, gate_of(ledger).release)
    with pytest.raises(LedgerFileError, match="nothing leaves"):
        gate_of(ledger).release(reply, order, asked(order))
    with pytest.raises(LedgerFileError, match="nothing leaves"):
        app(asked(order), Context(1, 7, {}, RecordDict(), {}))


LETTERS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=7, max_size=12)


ROWS = 64


@pytest.mark.parametrize("spoilt", ["", "age", "sick", "person"])
@given(
    word=st.text("abcdefghijklmnopqrstuvwxyz", min_size=7, max_size=12), digits=st.integers(10**6, 10**7 - 99)
)
@settings(
    max_examples=2,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_value_of_the_table_is_in_any_record(
    tmp_path_factory: pytest.TempPathFactory, spoilt: str, word: str, digits: int
) -> None:
    cells = {
        "name": [f"Zyx-{word}-{row}" for row in range(ROWS)],
        "person": [f"MRN{word}{row}" for row in range(ROWS)],
        "age": [f"{row % 3}.{digits + row}" for row in range(ROWS)],
        "crp": [f"-{row % 2}.{digits + ROWS + row}" for row in range(ROWS)],
        "sick": [("no", "yes")[row % 2] for row in range(ROWS)],
    }
    if spoilt:  # the hospital will have to refuse, and say why
        cells[spoilt] = [*cells[spoilt][:-1], "Zyx-in the wrong column"]
    ledger = Ledger(tmp_path_factory.mktemp("l") / "ledger", SITE)
    site = Site("ulm", Records("/srv/Zyx-ward/cases.csv", cells))
    app = client_app(lambda _context: site, gate_of(ledger).release)
    orders = [*ORDERS.values(), orders_for(plan_of(protection={"answers": "quantised"}))["quantised"], None]
    for order in orders:
        app(asked(order), Context(1, 7, {}, RecordDict(), {}))
    sent = {record.entry.kind for record in ledger.records() if record.entry.outcome == "sent"}
    refused = {record.entry.outcome for record in ledger.records()} - {"sent"}
    readable = spoilt in ("", "person")
    assert sent == {"Introduction"} | ({"MetaGradient", "Quantised", "Calibration"} if readable else set())
    assert ("table_mismatch" in refused) == (not readable)
    held = ledger.path.read_bytes().decode(errors="replace")
    table = site.table(PLAN.table).rows.inputs["table"].tolist() if readable else []
    values = [repr(value)[:9] for row in table for value in row]
    planted = [word, "Zyx", "MRN", "/srv", *(str(digits + row) for row in range(2 * ROWS)), *values]
    assert [what for what in planted if what in held] == []


def test_the_search_for_values_would_find_one(ledger: Ledger) -> None:
    gate_of(ledger).release(Refusal("", "ulm", "internal", "Zyx-abcdefg"), None, asked(None))
    assert "Zyx" in ledger.path.read_bytes().decode(errors="replace")
