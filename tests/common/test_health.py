"""What monitoring is told."""

import urllib.error
import urllib.request

import pytest
from daemons import free_ports

from clinimeta.common import health as module
from clinimeta.common.health import Health


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def asked(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_says_whether_it_is_ready_alive_and_what_it_counts(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health(port)
    health.start()
    try:
        assert asked(port, "/readyz") == (503, "starting\n")
        assert (health.ready(), health.ready()) == (True, False)
        assert asked(port, "/readyz") == (200, "ready\n")
        assert "clinimeta_ready 1.0" in asked(port, "/metrics")[1]
        health.not_ready("the link is down")
        assert asked(port, "/readyz") == (503, "the link is down\n")
        assert asked(port, "/healthz") == (200, "alive\n")
        assert asked(port, "/else")[0] == 404
        monkeypatch.setattr(health, "_patience_s", 0.0)
        assert asked(port, "/healthz") == (503, "stuck\n")
        with health.working():
            assert asked(port, "/healthz") == (200, "alive\n")
        assert module.STALE_S < module.WORK_S
    finally:
        health.stop()
