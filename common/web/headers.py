"""What every answer of a console carries, and which requests get no further: an ASGI layer around the app."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from clinimeta.common.errors import UserError

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST = 1 << 20
"""Bytes of a request's body."""
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer browsers call our own forms' origin null
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def require_safe_bind(host: str, tls: bool) -> None:
    """Do nothing, if passwords do not travel in clear.

    Raises:
        UserError: another address than loopback, without TLS.
    """
    if host not in LOOPBACK and not tls:
        raise UserError(
            "without TLS the console is for this machine only",
            where="--host",
            found=host,
            expected=", ".join(LOOPBACK),
            remedy="give --certificate and --key, or reach it through ssh: ssh -L 9446:127.0.0.1:9446 HUB",
        )


def guarded(inner: App, hosts: frozenset[str], tls: bool) -> App:
    """`inner` with the headers; requests for other hosts (DNS rebinding) or with large bodies are refused."""
    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    if tls:
        headers.append((b"strict-transport-security", b"max-age=31536000"))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        static = scope["path"].startswith("/static/")
        given = dict(scope["headers"])
        status = _refused(given, hosts)

        async def dressed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name != b"cache-control"]
                kept = b"max-age=3600" if static and message["status"] < 400 else b"no-store"
                message = {**message, "headers": [*own, *headers, (b"cache-control", kept)]}
            await send(message)

        if status:
            await dressed({"type": "http.response.start", "status": status, "headers": []})
            await dressed({"type": "http.response.body", "body": b""})
            return
        taken = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > LARGEST:
                return {"type": "http.disconnect"}
            return message

        await inner(scope, counted, dressed)

    return app


def _refused(headers: dict[bytes, bytes], hosts: frozenset[str]) -> int:
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host.rsplit("]", 1)[0] + "]" if host.startswith("[") else host.partition(":")[0]
    if name.strip("[]") not in hosts:
        return 421
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 18 or int(length) > LARGEST:
        return 413
    return 0
