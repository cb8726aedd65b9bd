"""The hospital's executor, given orders that are none: each is answered, and the next one is taken."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import structlog
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from clinimeta.client import runner
from clinimeta.client.app import client_app
from clinimeta.client.site import Site
from clinimeta.common.flower_records import from_flower, to_flower
from clinimeta.common.flower_tasks import Desk, Task
from clinimeta.common.records import Introduction, IntroductionOrder, Refusal
from clinimeta.common.tasks.table import Records

SECRET = "4711"


class SuperNode(RuntimeHttpClient):
    """What the executor sees of one: a message in parts, any of which may be spoilt."""

    def __init__(self, message: Message, spoil: Callable[[bytes], bytes] = lambda data: data) -> None:
        message.metadata.__dict__["_message_id"] = message.object_id
        self.message = message
        self.parts = {name: spoil(part.deflate()) for name, part in get_all_nested_objects(message).items()}

    def PullMessages(self, _request: Any) -> PullAppMessagesResponse:  # noqa: N802 (flwr's name)
        header = message_to_proto(remove_content_from_message(self.message))
        return PullAppMessagesResponse(
            messages_list=[header], message_object_trees=[get_object_tree(self.message)]
        )

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802 (flwr's name)
        content = self.parts[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, _request: Any) -> ConfirmMessageReceivedResponse:  # noqa: N802 (flwr's name)
        return ConfirmMessageReceivedResponse()


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower's, process-wide


def message(content: RecordDict, kind: str = "query.introduction") -> Message:
    return Message(content, 7, kind)


def task(node: SuperNode) -> Task:
    context = Context(1, 7, {}, RecordDict(), {})
    return Task(node, "token", Run.create_empty(1), context, "")


def site() -> Site:
    return Site("ulm", Records("ulm.csv", {"age": [SECRET, "50"], "death": ["0", "1"]}))


GOOD = to_flower(IntroductionOrder("nonce"))


def with_array(array: Array) -> RecordDict:
    return RecordDict({**GOOD, "tensors": ArrayRecord({"params": array})})


NO_ORDERS: dict[str, RecordDict] = {
    "nothing": RecordDict({}),
    "foreign records": RecordDict({"config": ConfigRecord({"lr": 0.1})}),
    "a record too many": RecordDict({**GOOD, "more": ConfigRecord({})}),
    "metrics in the fields' place": RecordDict({**GOOD, "fields": MetricRecord({"a": 1})}),
    "an unknown kind": RecordDict({**GOOD, "fields": ConfigRecord({**GOOD["fields"], "kind": "Export"})}),
    "another version": RecordDict({**GOOD, "fields": ConfigRecord({**GOOD["fields"], "version": 99})}),
    "an answer": to_flower(Refusal("nonce", "ulm", "internal", "no")),
    "a field too many": RecordDict({**GOOD, "fields": ConfigRecord({**GOOD["fields"], "rows": 5})}),
    "numpy's own arrays": with_array(Array(np.zeros(3))),
    "a pickle": with_array(Array("uint8", (3,), "numpy.ndarray", b"\x80\x04.")),
    "a shape that does not fit": with_array(Array("uint8", (10**12,), "clinimeta.safetensors", b"abc")),
    "a tensor that nobody asked for": with_array(
        Array("uint8", (2**22,), "clinimeta.safetensors", bytes(2**22))
    ),
}


@pytest.mark.parametrize("name", NO_ORDERS)
def test_what_is_no_order_is_refused_by_a_record(name: str) -> None:
    app = client_app(lambda _context: site())
    reply = runner.Order.of(task(SuperNode(message(NO_ORDERS[name])))).reply(app)
    record = from_flower(reply.content)
    assert isinstance(record, Refusal)
    assert (record.site, record.code) == ("ulm", "bad_order")
    assert SECRET not in record.reason


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "another kind of object": lambda data: b"os.system" + data[data.index(b" ") :],
    "noise": lambda data: bytes(255 - byte for byte in data),
}


@pytest.mark.parametrize("how", SPOILT)
def test_an_order_in_spoilt_parts_is_answered_with_an_error(how: str) -> None:
    node = SuperNode(message(GOOD), SPOILT[how])
    reply = runner.Order.of(task(node)).reply(client_app(lambda _context: site()))
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.metadata.reply_to_message_id == node.message.metadata.message_id
    assert not reply.error.reason


@pytest.mark.parametrize("kind", ["train", "train.everything", "query", "evaluate.introduction", "system"])
def test_a_message_type_that_we_do_not_know_is_answered_with_an_error(kind: str) -> None:
    node = SuperNode(message(GOOD, kind))
    reply = runner.Order.of(task(node)).reply(client_app(lambda _context: site()))
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.metadata.reply_to_message_id == node.message.metadata.message_id


def test_an_order_behind_a_bad_one_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them, once; the log names no value."""
    orders = [message(GOOD), message(GOOD, "train.everything"), message(NO_ORDERS["nothing"]), message(GOOD)]
    nodes = {str(number): SuperNode(order) for number, order in enumerate(orders)}
    replies: list[Message] = []

    @contextmanager
    def taken(_desk: Desk, token: str) -> Iterator[Task]:
        yield task(nodes[token])

    monkeypatch.setattr(runner, "tasks", lambda *_args, **_options: iter(nodes))
    monkeypatch.setattr(runner, "taken", taken)
    monkeypatch.setattr(runner, "push_message", lambda _client, reply, _context: replies.append(reply))
    with structlog.testing.capture_logs() as logs:
        runner.answer_tasks(Desk("", b""), client_app(lambda _context: site()), threading.Event())
    said = ["error" if r.has_error() else type(from_flower(r.content)).__name__ for r in replies]
    assert said == [Introduction.__name__, "error", Refusal.__name__, Introduction.__name__]
    assert SECRET not in str(logs)
    assert [log["log_level"] for log in logs] == ["error", "warning"]
