"""Flower's SuperLink in one process with two listeners: hospitals reach one, this machine the other.

Run as `python -m clinimeta.server.superlink FOLDER`. flwr serves its Fleet, Control and Runtime APIs on
one port, and its Control API asks nobody who they are. So the public listener passes on only what a SuperNode
asks for (and enrolment and health), and answers 404 to all others; the inner listener is on
loopback, and its Control API needs a secret.
"""

import asyncio
import hmac
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn

from clinimeta.common.logs import log_to_stderr, quiet_flower
from clinimeta.common.private_files import read_secret
from clinimeta.common.supervision import die_with_parent
from clinimeta.server.config import CoordinatorSettings, Home
from clinimeta.server.node_auth import NodeOf, is_signed_by_a_node

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
"""All that a SuperNode with a registered key asks for; registering nodes is the operator's."""

CONTROL_HEADER = "x-clinimeta-control"


class TooLarge(Exception):  # noqa: N818 (it ends a request)
    """A request's body is larger than allowed."""


ACTIVATE, LITTLE = "/v1/fleet/activate-node", 64 * 1024
"""Who is not registered is told so by Flower, in words, when it asks to be let in; and asks little."""


def public(inner: App, enrolment: App, largest: int, node_of: NodeOf) -> App:
    """What hospitals reach: `inner`'s Fleet API and health, and enrolment.

    Bodies have up to `largest` bytes from registered nodes, and few from others.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if method == "POST" and path == ACTIVATE:
            await limited(inner, LITTLE)(scope, receive, send)
        elif method == "POST" and path in FLEET:
            known = await asyncio.to_thread(is_signed_by_a_node, scope["headers"], node_of)
            await (limited(inner, largest)(scope, receive, send) if known else answer(send, 401))
        elif method == "GET" and path == "/health":
            await inner(scope, receive, send)
        elif path.startswith("/v1/enrolment/"):
            await limited(enrolment, LITTLE)(scope, receive, send)
        else:
            await answer(send, 404)

    return app


def loopback(inner: App, secret: bytes) -> App:
    """What this machine reaches: everything, but the Control API only with the secret."""
    expected = secret.hex().encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return
        if scope["type"] == "http" and not _is_open(scope["path"]):
            given = dict(scope["headers"]).get(CONTROL_HEADER.encode(), b"")
            if not hmac.compare_digest(given, expected):
                await answer(send, 401)
                return
        await inner(scope, receive, send)

    return app


def _is_open(path: str) -> bool:
    """The Runtime API asks for a run's own token, or for the secret shared with the round loop."""
    return path == "/health" or path.startswith("/v1/runtime/")


def limited(inner: App, largest: int) -> App:
    """`inner` for requests with bodies of up to so many bytes; 413 for others, whatever `inner` says."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        declared = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        if not all(value.isdigit() and len(value) < 20 and int(value) <= largest for value in declared):
            await answer(send, 413)
            return
        taken, began = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > largest:
                raise TooLarge
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal began
            if taken > largest and not began:
                return  # Flower makes a 500 of any exception
            began = True
            await send(message)

        with suppress(TooLarge):
            await inner(scope, counted, watched)
        if taken > largest and not began:
            await answer(send, 413)

    return app


async def answer(send: Send, status: int) -> None:
    """An empty response."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def flower_app(home: Home, settings: CoordinatorSettings) -> App:
    """The SuperLink's own application: node authentication on, nothing installed or started by it."""
    os.environ["FLWR_HOME"] = str(home.flower)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        control_address="127.0.0.1:0",
        health_server_address=None,
        host="127.0.0.1",
        port=settings.control.port,
        insecure=False,
        certificates=None,
        superexec_auth_secret=read_secret(home.superexec_secret),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(home.link_database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    quiet_flower()
    app: App = create_app(config, SuperLinkLifespan)
    return app


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for both servers, so for neither alone."""
        yield


async def serve(home: Home) -> None:
    """Both listeners, until SIGTERM."""
    from clinimeta.server.enrolment_api import enrolment_app

    settings = home.settings()
    inner = flower_app(home, settings)

    def state() -> Any:
        return inner.state.linkstate_factory.state()  # type: ignore[attr-defined]

    def deactivate(node: int) -> object:
        return state().deactivate_node(node)

    def node_of(key: bytes) -> int | None:
        found: int | None = state().get_node_id_by_public_key(key)
        return found

    largest = settings.public.largest_request_mib * 2**20
    common: dict[str, Any] = {"log_config": None, "access_log": False, "workers": 1, "server_header": False}
    common["ws"] = "none"  # an upgrade is a request like any other
    inside = _Server(
        uvicorn.Config(
            loopback(inner, read_secret(home.control_secret)),
            host="127.0.0.1",
            port=settings.control.port,
            **common,
        )
    )
    outside = _Server(
        uvicorn.Config(
            public(inner, enrolment_app(home, deactivate), largest, node_of),
            host=settings.public.host,
            port=settings.public.port,
            lifespan="off",
            ssl_certfile=str(home.certificate),
            ssl_keyfile=str(home.key),
            timeout_graceful_shutdown=5,
            **common,
        )
    )
    servers = (inside, outside)

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop()
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    die_with_parent()
    log_to_stderr()
    asyncio.run(serve(Home(Path(sys.argv[1]))))
