"""A node that speaks Flower's Fleet API by itself, with whatever key it was given."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from daemons import Federation
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor


@contextmanager
def fleet(federation: Federation, key: ec.EllipticCurvePrivateKey) -> Iterator[FleetHttpClient]:
    """The coordinator's public listener, as the holder of this key reaches it."""
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    client = FleetHttpClient.from_server_address(
        f"127.0.0.1:{federation.port}",
        False,
        (federation.hub.folder / "ca.crt").read_bytes(),
        interceptors=interceptors,
    )
    with client:
        yield client


def headers_of(key: ec.EllipticCurvePrivateKey) -> list[tuple[bytes, bytes]]:
    """What a SuperNode with this key sends beside a request, names in lower case."""
    request = httpx.Request("POST", "https://127.0.0.1/", headers={})
    context = ProtobufRequestContext("", PullMessagesRequest(), request)
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, lambda _: httpx.Response(200))
    return [(name.lower(), value) for name, value in request.headers.raw if name.lower() != b"host"]


def refusal_of(what: Any) -> int:
    """The status with which a request was refused; 200 where it was not."""
    try:
        what()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def activate(client: FleetHttpClient, key: ec.EllipticCurvePrivateKey) -> None:
    """Ask to be taken as the node of this key."""
    client.ActivateNode(
        ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30)
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A message that waits for its answer, as the SuperLink's database has it."""

    message_id: str
    run_id: int
    node: int
    kind: str


def waiting_for(federation: Federation, node: int) -> Asked | None:
    """What a node was asked and has not answered, as only the coordinator can know it."""
    path: Path = federation.hub.folder / "link.sqlite"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        row = connection.execute(
            "SELECT message_id, run_id, message_type FROM message_ins WHERE dst_node_id = ?"
            " AND message_id NOT IN (SELECT reply_to_message_id FROM message_res)"
            " ORDER BY created_at DESC",
            (node - 2**64 if node >= 2**63 else node,),
        ).fetchone()
    return None if row is None else Asked(row[0], row[1] % 2**64, node, row[2])


def answer_for(
    client: FleetHttpClient, me: int, asked: Asked, content: RecordDict, *, whole: bool = True
) -> None:
    """Answer, as node `me`, what another node was asked; with `whole` false the parts are never sent."""
    message: Message = make_message(
        Metadata(
            run_id=asked.run_id,
            message_id="",
            src_node_id=asked.node,
            dst_node_id=1,
            reply_to_message_id=asked.message_id,
            group_id="",
            created_at=time.time(),
            ttl=1.0,
            message_type=asked.kind,
        ),
        content=content,
    )
    message.metadata.__dict__["_message_id"] = message.object_id
    done = client.PushMessages(
        PushMessagesRequest(
            node=Node(node_id=me),
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(message)],
            clientapp_runtime_list=[0.0],
        )
    )
    assert done.objects_to_push, "the SuperLink takes it"
    for name, part in get_all_nested_objects(message).items():
        if whole and name in done.objects_to_push:
            client.PushObject(
                PushObjectRequest(
                    node=Node(node_id=me),
                    run_id=asked.run_id,
                    object_id=name,
                    object_content=part.deflate(),
                    session_id=done.session_id,
                )
            )
