"""The hospital's executor: takes Flower's tasks one by one and lets the installed ClientApp answer them.

One warm process, which loads torch and the hospital's table once. No code of the coordinator's runs
here: the bundle is never unpacked, and what a task may ask is what `records` defines.
"""

import threading
from collections.abc import Callable

import structlog
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ObjectTree
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


def answer_tasks(
    desk: Desk, app: ClientApp, stopping: threading.Event, beat: Callable[[bool], None] = lambda _: None
) -> None:
    """Answer whatever comes, until `stopping` is set; one task that fails does not end it."""
    for token in tasks(desk, CLIENT, poll_s=POLL_S, stopping=stopping, beat=beat):
        try:
            with taken(desk, token) as task:
                push_message(task.client, reply_to(task, app), task.context)
        except KeyboardInterrupt:
            log.info("the coordinator stopped the run while its order was being answered")
        except Exception as error:
            log.error("a task failed", error=type(error).__name__)  # its text may hold anything


def reply_to(task: Task, app: ClientApp) -> Message:
    """What the app says to the order that a task is about, or Flower's error: never nothing.

    The SuperNode takes nothing else from the coordinator before there is a reply.
    """
    found = task.client.PullMessages(PullAppMessagesRequest())
    header = message_from_proto(found.messages_list[0])
    try:
        return app(pull_message(task, found.message_object_trees[0]), task.context)
    except Exception as error:
        log.error("an order could not be answered", error=type(error).__name__)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=header)


def pull_message(task: Task, tree: ObjectTree) -> Message:
    """The order that a task is about, put together from its parts."""
    node, run_id = Node(node_id=task.context.node_id), task.context.run_id
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(task.client.PullObject, node, run_id),
        make_confirm_message_received_fn_protobuf(task.client.ConfirmMessageReceived, node, run_id),
        return_type=Message,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message
