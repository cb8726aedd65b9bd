"""One daemon a folder: its lock, how it is ended, and what is said where it does not become ready."""

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from clinimeta.common.errors import UserError
from clinimeta.common.running import in_background, only_one, running, stop

DAEMON = """
import signal, sys, threading, time
from pathlib import Path
from clinimeta.common.running import only_one
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
with only_one(Path(sys.argv[1])):
    print("up", flush=True)
    ended.wait()
    time.sleep(float(sys.argv[2]))
time.sleep(float(sys.argv[3]))
"""


def daemon(lock: Path, inside: float, after: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(lock), str(inside), str(after)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_stopped_is_said_when_the_process_has_ended_and_not_when_it_lets_go_of_the_lock(
    tmp_path: Path,
) -> None:
    process = daemon(tmp_path / "pid", 0.0, 0.5)
    assert running(tmp_path / "pid") == process.pid
    assert stop(tmp_path / "pid", 30)
    assert process.wait(0) == 0
    assert not stop(tmp_path / "pid", 30)


def test_one_that_does_not_end_is_named_and_lives(tmp_path: Path) -> None:
    process = daemon(tmp_path / "pid", 60.0, 0.0)
    with pytest.raises(UserError, match="does not end"):
        stop(tmp_path / "pid", 0.2)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert running(tmp_path / "pid") is None


def test_a_second_one_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with only_one(tmp_path / "pid"), pytest.raises(UserError) as refused, only_one(tmp_path / "pid"):
        pass
    assert refused.value.found == f"process {os.getpid()}"


class _Waiting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"at the coordinator: waiting\n")

    def log_message(self, *_: object) -> None: ...


def test_what_it_waits_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.py"
    program.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(sys, "argv", [str(program)])
    server = HTTPServer(("127.0.0.1", 0), _Waiting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ready = f"http://127.0.0.1:{server.server_port}/readyz"
    with pytest.raises(UserError, match="not ready yet") as refused:
        in_background([], tmp_path / "pid", tmp_path / "log", ready, 1.0)
    server.shutdown()
    server.server_close()
    pid = int(refused.value.found.split()[1])
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert refused.value.found.endswith("says: at the coordinator: waiting")


def test_one_that_ends_at_once_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('no table')\n")
    monkeypatch.setattr(sys, "argv", [str(program)])
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/readyz"
        with pytest.raises(UserError, match="did not start") as refused:
            in_background([], tmp_path / "pid", tmp_path / "log", url, 60)
    assert refused.value.found == "no table"
