"""Two listeners before one application: what passes each, what it asks for, how large it may be."""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from nodes import headers_of
from spellings import odd_spellings

from clinimeta.server.config import Home
from clinimeta.server.daemon import make_home
from clinimeta.server.superlink import (
    ACTIVATE,
    CONTROL_HEADER,
    FLEET,
    App,
    flower_app,
    limited,
    loopback,
    public,
)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "post")
PROTOBUF = (b"content-type", PROTOBUF_MEDIA_TYPE.encode())
SECRET = bytes(range(32))
KEY = ec.generate_private_key(ec.SECP384R1())


def node_of(key: bytes) -> int | None:
    """One node is registered."""
    return 7 if key == public_key_to_bytes(KEY.public_key()) else None


def from_outside(flower: App, enrolment: App, largest: int = 2**20) -> App:
    return public(flower, enrolment, largest, node_of)


def asked(
    app: App,
    method: str,
    path: str,
    *chunks: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    kind: str = "http",
) -> int | None:
    """The status of a request as uvicorn would pass it on; None where there was no answer."""
    said: list[dict[str, Any]] = []
    left = [*chunks] or [b""]

    async def receive() -> dict[str, Any]:
        body = left.pop(0) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Any) -> None:
        said.append(dict(message))

    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "https",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "client": ("192.0.2.1", 1),
        "server": ("192.0.2.2", 2),
        "state": {},
    }
    asyncio.run(app(scope, receive, send))
    return next((message["status"] for message in said if message["type"] == "http.response.start"), None)


def answering(name: str, heard: list[str]) -> App:
    """An application that says that it was reached, after reading the body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "http" and (await receive()).get("more_body"):
            pass
        heard.append(f"{name} {scope.get('method')} {scope.get('path')}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    path = tmp_path_factory.mktemp("coordinator") / "hub"
    return make_home(path, "hub", ["127.0.0.1"], host="127.0.0.1", port=1, control_port=2, health_port=3)


@pytest.fixture(scope="module")
def flower(home: Home) -> Iterator[App]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
            patch.setenv(name, "1")  # put back at the end
        yield flower_app(home, home.settings())


@pytest.fixture(scope="module")
def routes(flower: Any) -> list[str]:
    """Every path that Flower's application has."""
    from flwr.superlink.main import iter_route_contexts

    return sorted({str(one.path) for one in iter_route_contexts(flower.routes)})


# What hospitals reach


def test_outside_only_fleet_requests_and_health_reach_flower(routes: list[str]) -> None:
    heard: list[str] = []
    app = from_outside(answering("flower", heard), answering("enrolment", heard))
    headers = headers_of(KEY)
    statuses = {
        (method, path): asked(app, method, path, headers=headers) for path in routes for method in METHODS
    }
    passed = {f"flower POST {path}" for path in FLEET} | {"flower GET /health"}
    assert set(heard) == passed
    assert {f"flower {m} {p}" for (m, p), status in statuses.items() if status == 200} == passed
    assert {status for status in statuses.values() if status != 200} == {404}


def test_flower_has_more_than_a_hospital_needs(routes: list[str]) -> None:
    """Else the test above says nothing; and every name on our list exists."""
    assert set(routes) >= FLEET
    assert {"/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"} <= set(routes)
    assert {path for path in routes if path.startswith("/v1/fleet/")} - FLEET == {
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
    }


def test_no_spelling_of_another_route_reaches_flower(routes: list[str]) -> None:
    heard: list[str] = []
    app = from_outside(answering("flower", heard), answering("enrolment", heard))
    headers = headers_of(KEY)
    for path in routes:
        for spelled in odd_spellings(path):
            if spelled in FLEET or spelled == "/health":
                continue
            for method in ("GET", "POST"):
                assert asked(app, method, spelled, headers=headers) == 404, (method, spelled)
    assert heard == []


def test_flower_itself_does_not_take_a_fleet_path_for_another(flower: App) -> None:
    """What passes is what Flower routes: a request for each passes its checks only as a hospital's."""
    for path in FLEET:
        assert asked(flower, "POST", path, headers=[PROTOBUF]) == 401, path


def test_a_websocket_is_no_way_in(routes: list[str]) -> None:
    heard: list[str] = []
    inner = answering("inner", heard)
    for app in (from_outside(inner, inner), loopback(inner, SECRET)):
        for path in routes:
            assert asked(app, "GET", path, kind="websocket") is None
    assert heard == []


# What this machine reaches


def test_on_loopback_the_control_api_asks_for_the_secret(routes: list[str]) -> None:
    heard: list[str] = []
    app = loopback(answering("flower", heard), SECRET)
    wrong = [b"", b"x", SECRET, SECRET.hex().upper().encode(), SECRET.hex().encode()[:-1], b"\xff" * 64]
    for path in routes:
        if path == "/health" or path.startswith("/v1/runtime/"):
            continue
        assert asked(app, "POST", path) == 401
        for given in wrong:
            assert asked(app, "POST", path, headers=[(CONTROL_HEADER.encode(), given)]) == 401
    assert heard == []
    right = [(CONTROL_HEADER.encode(), SECRET.hex().encode())]
    assert asked(app, "POST", "/v1/control/start-run", headers=right) == 200


@pytest.mark.parametrize("path", ["/healthy", "/health/", "/v1/runtimes", "/v1/runtime", "//v1/runtime/x"])
def test_on_loopback_a_path_that_only_looks_open_asks_for_the_secret(path: str) -> None:
    heard: list[str] = []
    assert asked(loopback(answering("flower", heard), SECRET), "POST", path) == 401
    assert heard == []


def test_on_loopback_a_run_can_be_driven_by_nobody_without_its_token(routes: list[str], flower: App) -> None:
    app = loopback(flower, SECRET)
    runtime = [path for path in routes if path.startswith("/v1/runtime/")]
    assert len(runtime) > 10
    assert asked(app, "POST", "/v1/runtime/../control/start-run", headers=[PROTOBUF]) == 404
    for path in runtime:
        for headers in ([PROTOBUF], [(b"content-type", b"application/json")]):
            assert asked(app, "POST", path, headers=headers) in (401, 403, 415, 422), path


# Sizes

LIMIT = 1000
Wrap = Callable[[App], App]


@pytest.mark.parametrize(
    ("headers", "chunks"),
    [
        pytest.param([(b"content-length", b"1001")], [b""], id="declared"),
        pytest.param([(b"content-length", b"1001")], [b"x" * 1001], id="declared and sent"),
        pytest.param([], [b"x" * 400] * 3, id="in chunks, undeclared"),
        pytest.param([(b"content-length", b"5")], [b"x" * 1001], id="more than declared"),
        pytest.param([(b"content-length", b"-1")], [b""], id="negative"),
        pytest.param([(b"content-length", b"1e2")], [b""], id="no number"),
        pytest.param([(b"content-length", b"")], [b""], id="empty"),
        pytest.param([(b"content-length", "\u0661".encode())], [b""], id="other digits"),
        pytest.param([(b"content-length", b"9" * 5000)], [b""], id="a number that is too long to read"),
        pytest.param([(b"content-length", b"5000"), (b"content-length", b"5")], [b""], id="two"),
    ],
)
def test_a_body_over_the_limit_is_refused(
    headers: list[tuple[bytes, bytes]], chunks: list[bytes], flower: App
) -> None:
    heard: list[str] = []
    app = limited(answering("inner", heard), LIMIT)
    assert asked(app, "POST", "/v1/fleet/push-object", *chunks, headers=headers) == 413
    assert heard == []
    app, sent = from_outside(flower, flower, LIMIT), [PROTOBUF, *headers_of(KEY), *headers]
    assert asked(app, "POST", "/v1/fleet/push-object", *chunks, headers=sent) == 413


@pytest.mark.parametrize("chunks", [[b"x" * 1000], [b"x" * 400, b"x" * 600], [b""]])
def test_a_body_up_to_the_limit_passes_whole(chunks: list[bytes]) -> None:
    heard: list[str] = []
    length = [(b"content-length", str(sum(map(len, chunks))).encode())]
    app = limited(answering("inner", heard), LIMIT)
    assert asked(app, "POST", "/", *chunks) == 200
    assert asked(app, "POST", "/", *chunks, headers=length) == 200
    assert len(heard) == 2


STRANGERS: dict[str, Callable[[], list[tuple[bytes, bytes]]]] = {
    "no headers": list,
    "a key that nobody registered": lambda: headers_of(ec.generate_private_key(ec.SECP384R1())),
    "another's key": lambda: [
        *headers_of(ec.generate_private_key(ec.SECP384R1())),
        (FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b64encode(public_key_to_bytes(KEY.public_key()))),
    ],
    "a signature of another time": lambda: [
        *headers_of(KEY),
        (TIMESTAMP_HEADER.lower().encode(), b"2026-01-01"),
    ],
    "no base64": lambda: [*headers_of(KEY), (FLEET_HTTP_SIGNATURE_HEADER.lower().encode(), b"\xff")],
    "no key": lambda: [*headers_of(KEY), (FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b"AAAA")],
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_strangers_body_is_not_read(who: str) -> None:
    heard: list[str] = []
    app = from_outside(answering("flower", heard), answering("enrolment", heard))
    for path in FLEET - {ACTIVATE}:
        assert asked(app, "POST", path, b"x" * 1000, headers=STRANGERS[who]()) == 401
    assert heard == []
    assert asked(app, "POST", "/v1/fleet/pull-messages", b"x" * 1000, headers=headers_of(KEY)) == 200


def test_to_be_let_in_takes_little() -> None:
    heard: list[str] = []
    app = from_outside(answering("flower", heard), answering("enrolment", heard), 2**30)
    assert asked(app, "POST", ACTIVATE, b"x" * (64 * 1024 + 1)) == 413
    assert heard == []


def test_enrolment_takes_little_whatever_the_limit_is() -> None:
    heard: list[str] = []
    app = from_outside(answering("flower", heard), answering("enrolment", heard), 2**30)
    assert asked(app, "POST", "/v1/enrolment/enrol", b"x" * 64 * 1024) == 200
    assert asked(app, "POST", "/v1/enrolment/enrol", b"x" * (64 * 1024 + 1)) == 413
    assert len(heard) == 1
