"""Processes of one machine: no proxy between them, none left over, and a full disk ends none."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from clinimeta.common.supervision import keep_loopback_direct


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.mark.parametrize("said", [{}, {"NO_PROXY": "intranet.test"}, {"no_proxy": "a, b", "NO_PROXY": "c"}])
def test_no_proxy_comes_between_processes_of_this_machine(
    said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    url = f"http://127.0.0.1:{server.server_port}/"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    monkeypatch.setenv("no_proxy", os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")))
    monkeypatch.setenv("NO_PROXY", os.environ["no_proxy"])
    keep_loopback_direct()
    assert httpx.get(url).status_code == 204
    first = next(iter(said.values()), "127.0.0.1").split(",")[0]
    assert os.environ["NO_PROXY"].split(",")[0] == os.environ["no_proxy"].split(",")[0] == first
    before = os.environ["NO_PROXY"]
    keep_loopback_direct()
    assert os.environ["NO_PROXY"] == before
    server.shutdown()
    server.server_close()


DIE = "from clinimeta.common.supervision import die_with_parent; die_with_parent(); print('on')"


@pytest.mark.parametrize(
    ("parent", "expected"), [("-1", (1, "")), (str(os.getpid()), (0, "on\n"))], ids=["ended", "there"]
)
def test_a_child_whose_parent_has_ended_already_ends_too(parent: str, expected: tuple[int, str]) -> None:
    """The parent died before the child could ask the kernel to be told."""
    environment = {**os.environ, "CLINIMETA_PARENT": parent}
    command = [sys.executable, "-c", DIE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == expected


def test_a_full_disk_behind_the_log_ends_nothing() -> None:
    code = (
        "import structlog; from clinimeta.common.logs import log_to_stderr; log_to_stderr()\n"
        "for _ in range(3): structlog.get_logger().warning('a line', number=1)\nprint('on')"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.stdout == b"on\n"
