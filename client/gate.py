"""The one way out of the hospital: what leaves is in the ledger first, or does not leave."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from flwr.app import ConfigRecord, Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from clinimeta.client.budget import Budget
from clinimeta.client.ledger import SENT, Cost, Entry, Ledger, Sent
from clinimeta.common.errors import StudyError
from clinimeta.common.flower_records import PROOF, to_flower
from clinimeta.common.metrics import Mean
from clinimeta.common.params import norm
from clinimeta.common.plan import Plan
from clinimeta.common.receipts import CHECKPOINT_BYTES, Checkpoint
from clinimeta.common.records import MaskingOrder, Order, Refusal, Reply
from clinimeta.common.secagg.identity import Identity

_MEAN = ("total", "weight")


@dataclass(frozen=True, slots=True)
class Gate:
    """Signs an answer, writes it down, lets it go; `to`: whom, `policy`: digest of what allowed it."""

    ledger: Ledger
    identity: Identity
    to: str
    policy: Callable[[], str]
    budget: Budget | None = None
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def release(self, reply: Reply, order: Order | None, message: Message) -> Message:
        """The message that leaves in answer to `message`, with the ledger's checkpoint in it.

        Raises:
            LedgerFileError: it could not be written down, so it does not leave.
        """
        content = to_flower(reply, self.identity)
        proof = content[PROOF]
        assert isinstance(proof, ConfigRecord)
        proof["checkpoint"] = bytes(CHECKPOINT_BYTES)  # as long as what follows, for the count
        leaving = Message(content, reply_to=message)
        plan = plan_of(order)
        made = self.ledger.append(
            entry_of(
                reply,
                order,
                plan,
                at=self.clock().isoformat(),
                to=self.to,
                policy=self.policy(),
                cost=self._cost(plan),
                size=bytes_of(leaving),
            )
        )
        proof["checkpoint"] = made.to_bytes()
        return leaving

    def note(self, kind: str, plan: Plan | None, numbers: Mapping[str, Any], size: int) -> Checkpoint:
        """Write down what leaves by another way than Flower's, before it does; the ledger's checkpoint.

        Raises:
            LedgerFileError: it could not be written down.
        """
        return self.ledger.append(
            Entry(
                at=self.clock().isoformat(),
                kind=kind,
                to=self.to,
                outcome=SENT,
                run="",
                round=None,
                study="" if plan is None else plan.study,
                arm="" if plan is None else plan.arm,
                plan="" if plan is None else plan.digest,
                policy=self.policy(),
                tensors=(),
                numbers=dict(numbers),
                cost=None,
                bytes=size,
            )
        )

    def _cost(self, plan: Plan | None) -> Cost | None:
        """None also where the coordinator is trusted to add the noise: then nothing is spent here."""
        if self.budget is None or plan is None:
            return None
        spent, protection = self.budget.spent(plan.digest), plan.protection
        return Cost(spent, protection.delta, protection.noise_multiplier) if spent else None


def entry_of(
    reply: Reply,
    order: Order | None,
    plan: Plan | None,
    *,
    at: str,
    to: str,
    policy: str,
    cost: Cost | None,
    size: int,
) -> Entry:
    """What the ledger says of an answer; `size` is how many bytes Flower is given to send."""
    masked = isinstance(order, MaskingOrder) and bool(order.params) and not isinstance(reply, Refusal)
    return Entry(
        at=at,
        kind="masked" if masked else type(reply).__name__,
        to=to,
        outcome=reply.code if isinstance(reply, Refusal) else SENT,
        run=str(getattr(order, "run", "")),
        round=getattr(order, "round", None),
        study="" if plan is None else plan.study,
        arm="" if plan is None else plan.arm,
        plan="" if plan is None else plan.digest,
        policy=policy,
        tensors=tuple(_tensors(reply)),
        numbers=dict(_numbers(reply)),
        cost=cost,
        bytes=size,
    )


def plan_of(order: Order | None) -> Plan | None:
    """The plan that an order names, if it names one that can be read."""
    data = getattr(order, "plan", b"")
    try:
        return Plan.from_bytes(data) if data else None
    except StudyError:
        return None


def bytes_of(message: Message) -> int:
    """The bytes of a message's objects, as Flower pushes them (each once)."""
    return sum(len(one.deflate()) for one in get_all_nested_objects(message).values())


def _tensors(reply: Reply) -> Iterator[Sent]:
    for name, value in _fields(reply):
        if isinstance(value, bytes):
            yield Sent(name, "whole numbers", (len(value) // 4,), None, len(value), _sha256(value))
        elif isinstance(value, tuple) and value and isinstance(value[0], bytes):
            for number, data in enumerate(value):
                kind = "masked or encrypted"
                yield Sent(f"{name}.{number}", kind, (len(data),), None, len(data), _sha256(data))
        elif isinstance(value, Mapping) and not _is_metrics(value):
            for key, tensor in value.items():
                data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
                kind, length = str(tensor.dtype).removeprefix("torch."), norm({key: tensor})
                shown = length if math.isfinite(length) else None
                yield Sent(f"{name}.{key}", kind, tuple(tensor.shape), shown, len(data), _sha256(data))


def _numbers(reply: Reply) -> Iterator[tuple[str, Any]]:
    for name, value in _fields(reply):
        if isinstance(value, Mapping) and _is_metrics(value):
            yield name, {key: dict(zip(_MEAN, map(_plain, mean), strict=True)) for key, mean in value.items()}
        elif isinstance(value, str | int | float):
            yield name, _plain(value)
        elif isinstance(value, tuple) and not (value and isinstance(value[0], bytes)):
            yield name, [_plain(one) for one in value]


def _plain(value: str | int | float) -> str | int | float:
    """As JSON can hold it: what is not finite by its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _fields(reply: Reply) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(reply, field.name)) for field in dataclasses.fields(reply))


def _is_metrics(value: Mapping[str, Any]) -> bool:
    return all(isinstance(one, Mean) for one in value.values())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
