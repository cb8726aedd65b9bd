"""The hospital's executor: takes Flower's tasks one by one and lets the installed code answer them.

One warm process, which loads torch and the hospital's table once. No code of the coordinator's runs
here: the bundle is never unpacked, and what a task may ask is what `records` defines.
"""

import threading
from collections.abc import Callable

import structlog
from flwr.app import Context, Message
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supernode.runtime.run_clientapp import push_message

from clinimeta.common.flower_tasks import CLIENT, Desk, Task, taken, tasks

log = structlog.get_logger()

POLL_S = 0.2

Answer = Callable[[Message, Context], Message]
"""What makes an answer of an order."""


def answer_tasks(
    desk: Desk, app: Answer, stopping: threading.Event, beat: Callable[[bool], None] = lambda _: None
) -> None:
    """Answer whatever comes, until `stopping` is set; one task that fails does not end it."""
    for token in tasks(desk, CLIENT, poll_s=POLL_S, stopping=stopping, beat=beat):
        try:
            with taken(desk, token) as task:
                push_message(task.client, app(pull_message(task), task.context), task.context)
        except KeyboardInterrupt:
            log.info("the coordinator stopped the run while its order was being answered")
        except Exception as error:
            log.error("a task failed", error=type(error).__name__)  # its text may hold anything


def pull_message(task: Task) -> Message:
    """The order that a task is about."""
    node, run_id = Node(node_id=task.context.node_id), task.context.run_id
    tree = task.client.PullMessages(PullAppMessagesRequest()).message_object_trees[0]
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(task.client.PullObject, node, run_id),
        make_confirm_message_received_fn_protobuf(task.client.ConfirmMessageReceived, node, run_id),
        return_type=Message,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message
