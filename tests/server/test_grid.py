"""Our Grid over HTTP: a reply that is not whole holds up nobody, and one that never will be is an error."""

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run

from clinimeta.server.grid import PatientGrid


def reply(asked: str, claims: str | None = None) -> Message:
    """A reply to `asked`, which within itself may claim to be one to another message."""
    metadata = Metadata(
        1, "", 7, 1, asked if claims is None else claims, "", 0.0, 60.0, "train.meta_gradient"
    )
    message = make_message(metadata, content=RecordDict({"fields": ConfigRecord({"asked": asked})}))
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


class Link:
    """A SuperLink that hands each reply out once; `missing` parts are on their way, `lost` ones forgotten."""

    def __init__(self, replies: dict[str, Message]) -> None:
        self.replies = dict(replies)
        self.parts: dict[str, bytes] = {}
        for message in replies.values():
            self.parts |= {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        self.missing: set[str] = set()
        self.lost: set[str] = set()
        self.pulled: list[str] = []
        self.confirmed: list[str] = []

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802 (flwr's name)
        found = {asked: self.replies.pop(asked) for asked in request.message_ids if asked in self.replies}
        headers = [message_to_proto(remove_content_from_message(message)) for message in found.values()]
        for header, asked in zip(headers, found, strict=True):
            header.metadata.reply_to_message_id = asked  # what the SuperLink knows
        trees = [get_object_tree(message) for message in found.values()]
        return PullAppMessagesResponse(messages_list=headers, message_object_trees=trees)

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        name = request.object_id
        self.pulled.append(name)
        if name in self.lost:
            return PullObjectResponse(object_found=False)
        if name in self.missing:
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=self.parts[name])

    def ConfirmMessageReceived(self, request: Any) -> ConfirmMessageReceivedResponse:  # noqa: N802
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


def grid_on(link: Link, monkeypatch: pytest.MonkeyPatch) -> PatientGrid:
    grid = PatientGrid("127.0.0.1:1", "token")
    grid.set_run(Run.create_empty(1))
    monkeypatch.setattr(PatientGrid, "_runtime_client", link)
    return grid


def asked(messages: Any) -> list[str]:
    return [message.metadata.reply_to_message_id for message in messages]


def test_whole_replies_come_at_once_and_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link({"a": reply("a"), "b": reply("b")})
    grid = grid_on(link, monkeypatch)
    found = list(grid.pull_messages(["a", "b", "c"]))
    assert [message.content["fields"]["asked"] for message in found] == asked(found) == ["a", "b"]
    assert link.confirmed == [message.metadata.message_id for message in found]
    assert list(grid.pull_messages(["a", "b", "c"])) == []


def test_a_reply_with_parts_on_their_way_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = reply("a"), reply("b")
    link = Link({"a": first, "b": second})
    link.missing = {first.object_id}
    grid = grid_on(link, monkeypatch)
    assert asked(grid.pull_messages(["a", "b"])) == ["b"]
    assert asked(grid.pull_messages(["a"])) == []
    link.missing.clear()
    assert asked(grid.pull_messages(["a"])) == ["a"]
    once = [name for name in link.pulled if name != first.object_id]
    assert len(once) == len(set(once)), "what is there is not fetched again"


def test_a_reply_whose_parts_are_lost_is_an_error_that_names_what_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = reply("a")
    link = Link({"a": message})
    link.lost = {message.object_id}
    grid = grid_on(link, monkeypatch)
    (found,) = grid.pull_messages(["a"])
    assert found.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert found.metadata.reply_to_message_id == "a"
    assert list(grid.pull_messages(["a"])) == []


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "noise": lambda data: bytes(255 - byte for byte in data),
    "of an unknown kind": lambda data: b"Pickle" + data[data.index(b" ") :],
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_reply_in_spoilt_parts_is_an_error_and_the_others_come(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = reply("a"), reply("b")
    link = Link({"a": bad, "b": good})
    for name in get_all_nested_objects(bad):
        link.parts[name] = SPOILT[how](link.parts[name])
    first, second = grid_on(link, monkeypatch).pull_messages(["a", "b"])
    assert (first.has_error(), asked([first])) == (True, ["a"])
    assert (second.has_error(), asked([second])) == (False, ["b"])


def test_a_reply_that_claims_to_be_one_to_another_message_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a node could have the answer that it was asked for count as another's."""
    link = Link({"mine": reply("mine", claims="another's")})
    (found,) = grid_on(link, monkeypatch).pull_messages(["mine", "another's"])
    assert found.has_error()
    assert found.metadata.reply_to_message_id == "mine"
