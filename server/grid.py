"""Flower's Grid over HTTP, except that a reply whose parts are still on their way holds up nobody.

Flower's own waits in `pull_messages` until all parts of a reply are there: for more than an hour, if whoever
sent it is cut off in between, or wants that. Then no deadline of ours is looked at.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid.http_grid import HttpGrid


@dataclass(slots=True)
class _Arriving:
    """A reply of which some parts may be missing yet."""

    message_id: str
    parts: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)


class PatientGrid(HttpGrid):
    """A Grid whose `pull_messages` returns at once, with the replies that are whole."""

    def __init__(self, address: str, token: str) -> None:
        super().__init__(address, insecure=True, token=token)
        self._arriving: dict[str, _Arriving] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that have arrived whole since the last look."""
        wanted = list(message_ids)
        found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=wanted))
        for said, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            parts = list(_parts(tree))
            self._arriving[said.metadata.reply_to_message_id] = _Arriving(said.metadata.message_id, parts)
        replies = [self._look(asked) for asked in wanted if asked in self._arriving]
        return [reply for reply in replies if reply is not None]

    def _look(self, asked: str) -> Message | None:
        """The reply to a message, or None while parts of it are missing."""
        arriving, run_id = self._arriving[asked], self.run.run_id
        for part in arriving.parts:
            if part in arriving.contents:
                continue
            found = self._runtime_client.PullObject(
                PullObjectRequest(node=self.node, run_id=run_id, object_id=part)
            )
            if not found.object_found:
                del self._arriving[asked]
                return self._lost(asked)
            if not found.object_available:
                return None
            arriving.contents[part] = found.object_content
        del self._arriving[asked]
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.node, run_id=run_id, message_object_id=arriving.message_id
            )
        )
        reply = _put_together(arriving)
        if reply is None or reply.metadata.reply_to_message_id != asked:
            return self._lost(asked)
        return reply

    def _lost(self, asked: str) -> Message:
        """Flower's error for a reply that will never be whole."""
        metadata = Metadata(
            run_id=self.run.run_id,
            message_id="",
            src_node_id=self.node.node_id,
            dst_node_id=self.node.node_id,
            reply_to_message_id=asked,
            group_id="",
            created_at=0.0,
            ttl=0.0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        return make_message(metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE))


def _parts(tree: ObjectTree) -> Iterator[str]:
    return (part.object_id for part in iterate_object_tree(tree))


def _put_together(arriving: _Arriving) -> Message | None:
    try:
        message = inflate_object_from_contents(arriving.message_id, arriving.contents)
    except Exception:  # whatever Flower says of bytes that a node made up
        return None
    if not isinstance(message, Message):
        return None
    message.metadata.__dict__["_message_id"] = arriving.message_id
    return message
