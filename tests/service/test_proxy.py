"""Hospitals behind a forward proxy that alone knows where the coordinator is; and the proxy is cut."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from daemons import Federation, clinimeta, enrol, held_at, let_go, make_hub, pause_at, until
from proxy import Proxy
from small import PAIR, model_of, some, undisturbed_by

from clinimeta.common.study import Study
from clinimeta.common.tasks.table import Records

pytestmark = [
    pytest.mark.service,
    pytest.mark.long,
    pytest.mark.data,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("service"),
]
HUB = "hub.test"  # no name service has names under .test (RFC 6761)


@dataclass(frozen=True, slots=True)
class Behind:
    """A federation whose hospitals reach the coordinator through a proxy only."""

    federation: Federation
    proxy: Proxy
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]) -> Iterator[Behind]:
    federation = make_hub(tmp_path_factory.mktemp("behind"), HUB)
    proxy = Proxy({HUB: "127.0.0.1"}, password="ulm:secret").start()
    through = proxy.url("ulm", "secret")
    # As hospitals set them: for every scheme, with nothing about this machine's own addresses.
    environment = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"), through)
    environment |= {"NO_PROXY": "intranet.test", "SSL_CERT_FILE": "/dev/null"}
    try:
        federation.hub.start()
        for name, records in some(tables, *PAIR).items():
            enrol(federation, name, records, f"{HUB}:{federation.port}", **environment)
        for site in federation.sites.values():
            site.start(wait=False, **environment)
        for site in federation.sites.values():
            until(site.ready, 60)
        yield Behind(federation, proxy, environment)
    finally:
        federation.stop()
        proxy.stop()


@pytest.fixture(scope="module")
def expected(study: Study, tables: Mapping[str, Records], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return model_of(study, some(tables, *PAIR), tmp_path_factory.mktemp("expected"))


def test_a_hospital_works_through_a_proxy_and_asks_it_for_one_address(
    behind: Behind, study_text: str, expected: bytes
) -> None:
    before = behind.proxy.up
    undisturbed_by(behind.federation, study_text, lambda _name: None, expected)
    assert behind.proxy.up > before, "the answers went through the proxy"
    assert set(behind.proxy.asked) == {f"CONNECT {HUB}:{behind.federation.port}"}
    assert behind.proxy.refused == 0


def test_without_the_proxy_or_its_password_there_is_no_way(behind: Behind) -> None:
    home = behind.federation.sites["cleveland"].folder
    none = dict.fromkeys(behind.environment, "")
    wrong = {**behind.environment, "HTTPS_PROXY": behind.proxy.url("ulm", "guess")}
    spared = {**behind.environment, "NO_PROXY": HUB}
    for environment in (none, wrong, spared):
        said = clinimeta("site", "status", "--home", home, **environment)
        assert "cannot be reached" in said
        assert "secret" not in said
    assert behind.proxy.refused == 1
    behind.proxy.refused = 0
    assert "approved" in clinimeta("site", "status", "--home", home, **behind.environment)


def test_the_link_is_cut_for_20_s_in_the_middle_of_an_upload(
    behind: Behind, study_text: str, expected: bytes, tmp_path: Path
) -> None:
    """The SuperNode has announced its answer and sent a part of it."""
    site, marker = behind.federation.sites["hungary"], tmp_path / "held"
    site.stop()
    hold = pause_at("flwr.supernode.fleet_http_client:FleetHttpClient.PushObject", marker, skip=4)
    site.start(**hold, **behind.environment)

    def disturb(_name: str) -> None:
        assert held_at(marker) in site.children().values()
        behind.proxy.cut()
        let_go(marker)
        time.sleep(20)  # the length of the cut is what is tested
        behind.proxy.restore()

    undisturbed_by(behind.federation, study_text, disturb, expected)
