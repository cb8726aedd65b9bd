"""A stand-in for the hub on the wire: ends TLS with a certificate of its authority, notes all, passes on."""

import asyncio
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from flwr.proto.message_pb2 import PushObjectRequest

from clinimeta.server import pki


@dataclass(slots=True)
class Tap:
    """What went from a hospital to the hub: every body, and the bytes of the objects that were pushed."""

    hub: Path
    port: int
    to: int
    bodies: list[bytes] = field(default_factory=list)
    pushed: list[int] = field(default_factory=list)
    _server: Any = None

    def start(self) -> None:
        """Listen."""
        now = datetime.now(UTC)
        ca, key = (self.hub / "ca.crt").read_bytes(), (self.hub / "ca.key").read_bytes()
        certificate, own = pki.new_server(ca, key, ["127.0.0.1"], now)
        folder = self.hub.parent
        (folder / "tap.crt").write_bytes(certificate)
        (folder / "tap.key").write_bytes(own)
        config = uvicorn.Config(
            self._app,
            host="127.0.0.1",
            port=self.port,
            ssl_certfile=str(folder / "tap.crt"),
            ssl_keyfile=str(folder / "tap.key"),
            log_config=None,
            lifespan="off",
            interface="asgi3",
            ws="none",
        )
        self._server = uvicorn.Server(config)
        threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True).start()

    def stop(self) -> None:
        """Listen no longer."""
        self._server.should_exit = True

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        if scope["path"] == "/v1/fleet/push-object":
            request = PushObjectRequest.FromString(body)
            self.pushed.append(len(request.object_content))
        headers = [(k, v) for k, v in scope["headers"] if k not in (b"host", b"content-length")]
        url = f"https://127.0.0.1:{self.to}{scope['path']}"
        async with httpx.AsyncClient(verify=str(self.hub / "ca.crt"), trust_env=False) as client:
            reply = await client.request(scope["method"], url, headers=headers, content=body, timeout=60)
        passed = [
            (k, v) for k, v in reply.headers.raw if k.lower() not in (b"content-length", b"content-encoding")
        ]
        passed.append((b"content-length", str(len(reply.content)).encode()))
        await send({"type": "http.response.start", "status": reply.status_code, "headers": passed})
        await send({"type": "http.response.body", "body": reply.content})
