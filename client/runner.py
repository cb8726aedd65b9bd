"""The hospital's executor: takes Flower's tasks one by one and lets the installed code answer them.

One warm process, which loads torch and the hospital's table once. No code of the coordinator's runs
here: the bundle is never unpacked, and what a task may ask is what `records` defines.
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import structlog
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_and_inflate_object_from_tree
from flwr.supernode.runtime.run_clientapp import push_message

from clinimeta.common.flower_tasks import CLIENT, Desk, Task, taken, tasks

log = structlog.get_logger()

POLL_S = 0.2
ARRIVES_WITHIN_S = 600.0
"""An order of which a part is still missing then is given up."""

Answer = Callable[[Message, Context], Message]
"""What makes an answer of an order."""


def answer_tasks(
    desk: Desk, app: Answer, stopping: threading.Event, beat: Callable[[bool], None] = lambda _: None
) -> None:
    """Answer whatever comes, until `stopping` is set; one task that fails does not end it.

    An order whose parts are not all there yet (or never will be: its run was stopped meanwhile) waits, and
    holds up no other.
    """
    waiting: list[_Taken] = []
    try:
        for token in tasks(desk, CLIENT, poll_s=POLL_S, stopping=stopping, beat=beat):
            if token is not None:
                waiting += _take(desk, token)
            waiting = [one for one in waiting if not one.is_over(app)]
    finally:
        for one in waiting:
            one.end(SystemExit())


@dataclass(frozen=True, slots=True)
class Order:
    """What a task is about: the order's header, the tree of its parts, and until when they may arrive."""

    task: Task
    header: Message
    tree: ObjectTree
    until: float

    @staticmethod
    def of(task: Task) -> "Order":
        """The order of a task; its parts may still be on their way."""
        found = task.client.PullMessages(PullAppMessagesRequest())
        header = message_from_proto(found.messages_list[0])
        return Order(task, header, found.message_object_trees[0], time.monotonic() + ARRIVES_WITHIN_S)

    def reply(self, app: Answer) -> Message | None:
        """What the app says, or Flower's error: never nothing. None: the order is not all there yet.

        The SuperNode takes nothing else from the coordinator before there is a reply.
        """
        try:
            return app(pull_message(self.task, self.tree), self.task.context)
        except ObjectPullError:
            if time.monotonic() < self.until:
                return None
            why = "it never arrived whole"
        except Exception as error:
            why = type(error).__name__  # its text may hold anything
        log.error("an order could not be answered", error=why)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=self.header)


@dataclass(frozen=True, slots=True)
class _Taken:
    order: Order
    stack: ExitStack

    def is_over(self, app: Answer) -> bool:
        task = self.order.task
        try:
            reply = self.order.reply(app)
            if reply is None:
                return False
            push_message(task.client, reply, task.context)
        except KeyboardInterrupt as stopped:
            log.info("the coordinator stopped the run while its order was being answered")
            self.end(stopped)
        except Exception as error:
            log.error("an answer could not be handed over", error=type(error).__name__)
            self.end(error)
        else:
            self.end(None)
        return True

    def end(self, error: BaseException | None) -> None:
        """Tell the SuperNode how the task ended."""
        with suppress(BaseException):  # the task's own end raises the error again
            self.stack.__exit__(type(error) if error else None, error, None)


def _take(desk: Desk, token: str) -> list[_Taken]:
    stack = ExitStack()
    try:
        return [_Taken(Order.of(stack.enter_context(taken(desk, token))), stack)]
    except Exception as error:
        log.error("a task could not be taken", error=type(error).__name__)
        with suppress(Exception):
            stack.__exit__(type(error), error, None)
        return []


def pull_message(task: Task, tree: ObjectTree) -> Message:
    """The order that a task is about, put together from its parts.

    Raises:
        ObjectPullError: a part is not there (yet).
    """
    node, run_id = Node(node_id=task.context.node_id), task.context.run_id
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(task.client.PullObject, node, run_id),
        make_confirm_message_received_fn_protobuf(task.client.ConfirmMessageReceived, node, run_id),
        return_type=Message,
        max_tries_per_object=1,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message
