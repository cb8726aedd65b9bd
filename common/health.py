"""/healthz, /readyz and /metrics on loopback, for monitoring (Prometheus); no data values in any of them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.process_collector import ProcessCollector

STALE_S, WORK_S = 60.0, 3600.0
"""After how long without a beat it is stuck: in its loop, and while it computes."""


class Health:
    """A small server in a thread. Alive: `beat` was called within a minute; ready: `ready` was."""

    def __init__(self, port: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._ready_gauge = Gauge("clinimeta_ready", "1 where it can do its work", registry=self.registry)
        self._why, self._ready, self._beaten = "starting", False, time.monotonic()
        self.note = ""
        """What a person should know though it is ready; without data values."""
        self._patience_s = STALE_S
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """It computes, and is alive for an hour without a beat."""
        self._patience_s = WORK_S
        try:
            yield
        finally:
            self._patience_s = STALE_S
            self.beat()

    def beat(self) -> None:
        """It is alive."""
        self._beaten = time.monotonic()

    def ready(self) -> bool:
        """It can do its work; True where that is news."""
        self.beat()
        before, self._ready = self._ready, True
        self._ready_gauge.set(1)
        return not before

    def not_ready(self, why: str) -> None:
        """It cannot, for a reason without data values."""
        self.beat()
        self._ready, self._why = False, why
        self._ready_gauge.set(0)

    def _answer(self, path: str) -> tuple[int, bytes]:
        if path == "/healthz":
            alive = time.monotonic() - self._beaten < self._patience_s
            return (200, b"alive\n") if alive else (503, b"stuck\n")
        if path == "/readyz":
            note = f"{self.note}\n" if self.note else ""
            text = f"ready\n{note}" if self._ready else f"{self._why}\n{note}"
            return (200 if self._ready else 503), text.encode()
        if path == "/metrics":
            return 200, generate_latest(self.registry)
        return 404, b""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = health._answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Probes come every few seconds."""

        return Handler
