"""A forward proxy of the kind that stands between a hospital and the internet: CONNECT, and nothing else.

It resolves names that nobody else does, counts bytes each way, may ask for a password, and can be cut.
"""

import asyncio
import base64
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Proxy:
    """A proxy in a thread. `hosts` is its name service; `asked` has what each request asked for, in order.

    `refused` counts requests without the right password, `up` and `down` the bytes within tunnels.
    """

    hosts: Mapping[str, str]
    password: str = ""
    port: int = 0
    asked: list[str] = field(default_factory=list)
    refused: int = 0
    up: int = 0
    down: int = 0
    is_cut: bool = False
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def start(self) -> "Proxy":
        """Begin to listen on loopback."""
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._await(self._listen())
        return self

    def stop(self) -> None:
        """End."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def cut(self) -> None:
        """Break all tunnels, and refuse new ones until `restore`."""
        self.is_cut = True
        self._await(self._break())

    def restore(self) -> None:
        """Let new tunnels through again."""
        self.is_cut = False

    def url(self, user: str = "", password: str = "") -> str:
        """What HTTPS_PROXY says."""
        return f"http://{f'{user}:{password}@' if user else ''}127.0.0.1:{self.port}"

    def _await(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]

    async def _break(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            return
        self._open.add(writer)
        first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = first.split(" ")
        self.asked.append(f"{method} {target}")
        host, _, port = target.rpartition(":")
        sent = dict(line.lower().split(": ", 1) for line in headers if line)
        wanted = "basic " + base64.b64encode(self.password.encode()).decode().lower()
        if self.password and sent.get("proxy-authorization") != wanted:
            self.refused += 1
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n"
                b"Content-Length: 0\r\n\r\n"
            )
            return
        if method != "CONNECT" or host not in self.hosts:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        inner, outer = await asyncio.open_connection(self.hosts[host], int(port))
        self._open.add(outer)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(self._pump(reader, outer, "up"), self._pump(inner, writer, "down"))
        finally:
            self._open.discard(outer)
            outer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
        while data := await source.read(65536):
            setattr(self, way, getattr(self, way) + len(data))
            sink.write(data)
            await sink.drain()
        sink.close()
