"""An answer of each kind with its order, and a SuperNode that takes what Flower hands over."""

import math
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse
from flwr.supercore.task_identity import TaskIdentity
from guarded import orders_for, plan_of

from clinimeta.common.flower_records import MESSAGE_TYPES, to_flower
from clinimeta.common.metrics import Mean
from clinimeta.common.records import (
    Calibration,
    Introduction,
    IntroductionOrder,
    Masking,
    MetaGradient,
    Order,
    Quantised,
    Refusal,
    Reply,
)

PLAN = plan_of()
ORDERS = orders_for(PLAN)
GRADIENT = {
    "head.weight": torch.tensor([[3.0, -4.0]]),
    "rate": torch.tensor(0.5),
    "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "double": torch.zeros(2, 0, dtype=torch.float64),
}
METRICS = {"query_loss": Mean(1.5, 4.0), "query_accuracy": Mean(math.inf, 4.0)}
REPLIES: dict[str, tuple[Reply, Order | None]] = {
    "introduction": (Introduction("nonce", "ulm", "clinimeta 0", 20, 49), ORDERS["introduction"]),
    "meta-gradient": (
        MetaGradient("nonce", "run", 1, "ulm", 4.0, GRADIENT, METRICS),
        ORDERS["meta-gradient"],
    ),
    "bare meta-gradient": (MetaGradient("nonce", "run", 1, "ulm", 4.0, {}, {}), ORDERS["meta-gradient"]),
    "quantised": (Quantised("nonce", "run", 1, "ulm", b"\x01\0\0\0" * 9), ORDERS["quantised"]),
    "keys": (Masking("nonce", "run", "ulm", (b"a" * 40, b"b" * 7)), ORDERS["masking, first"]),
    "shares": (Masking("nonce", "run", "ulm", (b"c",)), ORDERS["masking, between"]),
    "masked": (Masking("nonce", "run", "ulm", (b"d" * 1000, b"")), ORDERS["masking, with parameters"]),
    "no answers": (Masking("nonce", "run", "ulm", ()), ORDERS["masking, between"]),
    "calibration": (
        Calibration("nonce", "run", "ulm", (1, 5), (0.1, 0.2, 0.3, math.inf)),
        ORDERS["calibration"],
    ),
    "refusal": (Refusal("nonce", "ulm", "budget_spent", "no"), ORDERS["masking, with parameters"]),
    "refusal of what is no order": (Refusal("", "ulm", "bad_order", "no"), None),
}


def asked(order: Order | None) -> Message:
    """The order as it came; no order of ours where it is None."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower's, process-wide
    content = RecordDict({}) if order is None else to_flower(order)
    message = Message(content, 7, MESSAGE_TYPES[type(order or IntroductionOrder(""))])
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


class SuperNode:
    """Takes what Flower hands over; `look` is called before the first byte of it is."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look, self.objects = look, list[bytes]()

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:  # noqa: N802
        self._look()
        [tree] = request.message_object_trees
        return PushAppMessagesResponse(objects_to_push=names_in(tree), session_id="s")

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        self.objects.append(request.object_content)
        return PushObjectResponse(stored=True)


def names_in(tree: Any) -> list[str]:
    return [tree.object_id, *(name for child in tree.children for name in names_in(child))]
