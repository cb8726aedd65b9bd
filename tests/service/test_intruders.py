"""Real daemons, and somebody who should not get in: at every door, with stolen, old and foreign keys."""

import http.client
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from daemons import Federation, clinimeta, enrol, federation_of, held_at, instead, let_go, pause_at, until
from nodes import activate, answer_for, fleet, headers_of, refusal_of, waiting_for
from small import PAIR, model_of, some, undisturbed_by
from spellings import odd_spellings

from clinimeta.client.config import Home as SiteHome
from clinimeta.client.keys import identity, node_key
from clinimeta.common.flower_records import to_flower
from clinimeta.common.records import MetaGradient
from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records
from clinimeta.server import enrolment
from clinimeta.server.config import Home
from clinimeta.server.database import Database
from clinimeta.server.superlink import FLEET, flower_app

pytestmark = [
    pytest.mark.service,
    pytest.mark.data,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("service"),
]
PROTOBUF = {"Content-Type": "application/protobuf"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]) -> Iterator[Federation]:
    federation = federation_of(tmp_path_factory.mktemp("pair"), some(tables, *PAIR))
    yield federation
    federation.stop()


@pytest.fixture(scope="module")
def expected(study: Study, tables: Mapping[str, Records], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return model_of(study, some(tables, *PAIR), tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every path of Flower's application."""
    from flwr.superlink.main import iter_route_contexts

    root = tmp_path_factory.mktemp("routes") / "hub"
    clinimeta("coordinator", "init", root, "--name-in-certificate", "localhost")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
            patch.setenv(name, "1")  # put back at the end
        home = Home(root)
        app = flower_app(home, home.settings())
    return sorted({str(one.path) for one in iter_route_contexts(app.routes)})  # type: ignore[attr-defined]


# Doors


def outside(federation: Federation) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(federation.hub.folder / "ca.crt"))
    return http.client.HTTPSConnection("127.0.0.1", federation.port, context=context, timeout=20)


def raw(federation: Federation, request: bytes) -> str:
    """The first line of the answer to these bytes over TLS."""
    context = ssl.create_default_context(cafile=str(federation.hub.folder / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", federation.port), 20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as channel,
    ):
        channel.sendall(request)
        return channel.makefile("rb").readline().decode().strip()


def test_outside_all_but_the_fleet_api_is_not_found(pair: Federation, routes: list[str]) -> None:
    connection = outside(pair)
    statuses = {}
    for path in routes:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            connection.request(method, path, b"", PROTOBUF)
            answer = connection.getresponse()
            answer.read()
            statuses[method, path] = answer.status
    found = {key: status for key, status in statuses.items() if status != 404}
    assert found == {("GET", "/health"): 200} | {("POST", path): 401 for path in FLEET}


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/register-node", "/openapi.json"]
)
def test_outside_no_spelling_leads_further(pair: Federation, path: str) -> None:
    for spelled in odd_spellings(path):
        target = spelled.encode().replace(b"\0", b"").replace(b" ", b"") or b"?"
        for method in (b"GET", b"POST"):
            head = method + b" " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n"
            first = raw(pair, head + b"Connection: close\r\n\r\n")
            assert re.match(r"HTTP/1\.1 (404|400) ", first), (method, spelled, first)


def test_outside_an_upgrade_is_a_request_like_any_other(pair: Federation) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    for path in (b"/v1/control/start-run", b"/v1/runtime/get-nodes", b"/"):
        assert " 404 " in raw(pair, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n" + upgrade)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(pair: Federation) -> None:
    """Only the headers are sent."""
    key = node_key(SiteHome(pair.sites["cleveland"].folder))
    signed = b"".join(name + b": " + value + b"\r\n" for name, value in headers_of(key))

    def asked(path: bytes, length: int, headers: bytes = b"") -> str:
        head = b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/protobuf\r\n"
        return raw(pair, head + headers + f"Content-Length: {length}\r\n\r\n".encode()).split()[1]

    assert asked(b"/v1/fleet/push-object", 2**28 + 1, signed) == "413"
    assert asked(b"/v1/fleet/push-object", 2**28) == "401", "a stranger"
    assert asked(b"/v1/fleet/activate-node", 2**16 + 1) == "413"
    assert asked(b"/v1/enrolment/enrol", 2**16 + 1) == "413"


def test_on_loopback_nobody_starts_a_run_without_the_secret(pair: Federation) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", pair.control, timeout=20)
    for path in ("/v1/control/start-run", "/v1/control/register-node", "/docs", "/v1/fleet/register-node"):
        for headers in (PROTOBUF, {**PROTOBUF, "x-clinimeta-control": "0" * 64}):
            connection.request("POST", path, b"", headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 401, path


# Keys


def test_a_key_that_nobody_enrolled_is_refused(pair: Federation) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with fleet(pair, key) as client:
        assert refusal_of(lambda: activate(client, key)) in (401, 412)


def test_one_hospitals_key_does_not_open_as_anothers_node(pair: Federation) -> None:
    """Signed with a valid key, for another's public key."""
    mine = node_key(SiteHome(pair.sites["cleveland"].folder))
    theirs = node_key(SiteHome(pair.sites["hungary"].folder))
    with fleet(pair, mine) as client:
        assert refusal_of(lambda: activate(client, theirs)) == 401


def test_a_hospital_connects_only_while_it_is_approved_and_is_told_why(
    pair: Federation, tables: Mapping[str, Records]
) -> None:
    hub, name = pair.hub.folder, "switzerland"
    token = clinimeta("coordinator", "invite", name, "--home", hub).strip()
    site = enrol(pair, name, tables[name], token=token)
    key = node_key(SiteHome(site.folder))
    cleveland = pair.sites["cleveland"].folder
    clinimeta("site", "enrol", "--home", cleveland, "--token", token, expect=2)

    def status() -> str:
        return clinimeta("site", "status", "--home", site.folder)

    try:
        assert "waiting" in status()
        site.start(wait=False)
        until(lambda: "waiting" in site.why(), 30)
        with fleet(pair, key) as client:
            assert refusal_of(lambda: activate(client, key)) != 200

        clinimeta("coordinator", "approve", name, "--home", hub)
        until(site.ready, 60)
        assert "approved" in status()

        clinimeta("coordinator", "revoke", name, "--reason", "left", "--home", hub)
        until(lambda: "revoked" in site.why(), 45)
        assert "revoked" in status()
        with fleet(pair, key) as client:
            assert refusal_of(lambda: activate(client, key)) != 200
        assert "revoked" in site.log()
        assert all(other.ready() for other in (pair.sites["cleveland"], pair.sites["hungary"]))
    finally:
        site.stop()
        del pair.sites[name]


def test_after_a_rotation_the_old_keys_are_refused_and_the_new_ones_work(
    pair: Federation, study_text: str, expected: bytes
) -> None:
    site, hub = pair.sites["hungary"], pair.hub.folder
    home = SiteHome(site.folder)
    key, before = node_key(home), clinimeta("site", "ledger", "verify", "--home", site.folder)
    token = site.folder / "rotate.token"
    token.write_text(clinimeta("coordinator", "rotate", "hungary", "--auto", "--home", hub))
    refused = clinimeta("site", "rotate", "--home", site.folder, "--token-file", token, expect=2)
    assert "running already" in refused
    site.stop()
    clinimeta("site", "rotate", "--home", site.folder, "--token-file", token)
    with fleet(pair, key) as client:
        until(lambda: refusal_of(lambda: activate(client, key)) != 200, 20)
    site.start()
    undisturbed_by(pair, study_text, lambda _name: None, expected)
    (former,) = home.former.iterdir()
    assert clinimeta("site", "ledger", "verify", "--home", former) == before
    assert "all records up to number" in clinimeta("site", "ledger", "verify", "--home", site.folder)


# Nodes


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "announced only"])
def test_a_node_that_answers_for_another_is_refused(
    pair: Federation, study_text: str, expected: bytes, tmp_path: Path, whole: bool
) -> None:
    """With its own valid key, and another's message id, which it should never have."""
    victim, marker = pair.sites["hungary"], tmp_path / "held"
    thief = SiteHome(pair.sites["cleveland"].folder)
    nodes = {
        site.name: site.node_id or 0
        for site in enrolment.known(Database.open(Home(pair.hub.folder).database))
    }
    victim.stop()
    victim.start(**pause_at("clinimeta.client.meta_gradients:meta_gradients", marker))
    before = len(pair.hub.log())

    def disturb(name: str) -> None:
        held_at(marker)
        asked = until(lambda: waiting_for(pair, nodes["hungary"]), 20)
        poison = {"w": torch.full((15,), 1e6)}
        forged = MetaGradient("0" * 32, name, 1, "hungary", 4.0, poison, {})
        with fleet(pair, node_key(thief)) as client:
            content = to_flower(forged, identity(thief, "hungary"))
            answer_for(client, nodes["cleveland"], asked, content, whole=whole)
        if whole:
            said = "an answer is not signed by the hospital that was asked"
            until(lambda: said in pair.hub.log()[before:], 20)
        let_go(marker)

    undisturbed_by(pair, study_text, disturb, expected)


# Code


def test_only_code_that_is_installed_runs(
    pair: Federation, study_text: str, expected: bytes, tmp_path: Path
) -> None:
    """A bundle that names its own code, with packages that would shadow ours, is carried, not opened."""
    marker = tmp_path / "ran"
    pair.hub.stop()
    hostile = instead("clinimeta.server.bundle:bundle", "hostile:bundle")
    pair.hub.start(**hostile, CLINIMETA_TEST_MARKER=str(marker))
    undisturbed_by(pair, study_text, lambda _name: None, expected)
    bundle = marker.with_name("ran.bundle").read_bytes()
    assert b"hostile_app.py" in bundle
    assert not marker.exists()
    assert list(pair.root.rglob("hostile_app*")) == []
    pair.hub.stop()
    pair.hub.start()


def test_orders_that_are_none_are_refused_and_the_next_is_answered(
    pair: Federation, study_text: str, expected: bytes, tmp_path: Path
) -> None:
    marker = tmp_path / "said"
    pair.hub.stop()
    hostile = instead("clinimeta.server.app:conduct", "hostile:conduct")
    pair.hub.start(**hostile, CLINIMETA_TEST_MARKER=str(marker))
    before = {name: site.children() for name, site in pair.sites.items()}
    undisturbed_by(pair, study_text, lambda _name: None, expected)
    refused, failed = "Refusal bad_order", "error 2"
    assert marker.read_text().splitlines() == [
        f"{kind}: {what}"
        for kind, what in (
            ("query.introduction", refused),
            ("query.introduction", refused),
            ("train.meta_gradient", refused),
            ("train.meta_gradient", refused),
            ("train.everything", failed),
            ("evaluate", failed),
            ("query.introduction", "Introduction"),
        )
        for _ in PAIR
    ]
    assert {name: site.children() for name, site in pair.sites.items()} == before, "nothing was started again"
    pair.hub.stop()
    pair.hub.start()
