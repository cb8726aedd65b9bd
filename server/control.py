"""What the coordinator asks of its own SuperLink on loopback: which nodes it knows, which runs it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from clinimeta.common.private_files import read_secret
from clinimeta.server.config import Home
from clinimeta.server.superlink import CONTROL_HEADER


@dataclass(frozen=True, slots=True)
class Node:
    """A SuperNode that is registered: its public key (PEM), and whether it is there."""

    node_id: int
    key: bytes
    online: bool
    online_until: float


@dataclass(frozen=True, slots=True)
class FlowerRun:
    """A run of Flower's: its state is pending, starting, running or finished."""

    run_id: int
    state: str
    outcome: str
    details: str


class _WithSecret:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret.hex()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[CONTROL_HEADER] = self._secret
        return call_next(context)


@dataclass(frozen=True, slots=True)
class Control:
    """The SuperLink's Control API. Every method raises httpx.HTTPError while it cannot be reached."""

    client: ControlHttpClient

    @staticmethod
    @contextmanager
    def of(home: Home) -> Iterator["Control"]:
        """A connection for as long as the context lasts."""
        address = f"127.0.0.1:{home.settings().control.port}"
        client = ControlHttpClient.from_server_address(
            address, True, None, interceptors=[_WithSecret(read_secret(home.control_secret))]
        )
        with client:
            yield Control(client)

    def nodes(self) -> list[Node]:
        """All registered nodes; Flower goes on listing those that were, without letting them in."""
        found = self.client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(n.node_id, n.public_key, n.status == NodeStatus.ONLINE, n.online_until)
            for n in found
            if n.status != NodeStatus.UNREGISTERED
        ]

    def register(self, key: bytes, name: str) -> int:
        """Let whoever holds this key (public, PEM) connect; its node id."""
        return int(self.client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Refuse this node from now on."""
        self.client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start(self, bundle: bytes, digest: str, config: dict[str, str]) -> int:
        """Start a run; its id."""
        fab = Fab(hash_str=digest, content=bundle)
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        return int(self.client.StartRun(request).run_id)

    def stop(self, run_id: int) -> None:
        """Stop a run."""
        self.client.StopRun(StopRunRequest(run_id=run_id))

    def run(self, run_id: int) -> FlowerRun | None:
        """A run, or None where the SuperLink does not know it (any more)."""
        found = self.client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in found:
            return None
        status = found[run_id].status
        return FlowerRun(run_id, status.status, status.sub_status, status.details)
