"""The mistakes of the first hour, and what the commands say to them; no daemon runs."""

from pathlib import Path

import pytest

from clinimeta.simulations.cli import app, run


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run(lambda: app(args=[str(word) for word in words], standalone_mode=False))
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


@pytest.mark.parametrize(
    "name", ["https://hub.example.org", "hub.example.org:9443", "hub.example.org/", "two words", "a..b"]
)
def test_a_certificate_is_for_host_names_and_addresses_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "hub"
    names = ("--name-in-certificate", "hub.example.org", "--name-in-certificate", name)
    code, said = typed(capsys, "coordinator", "init", folder, *names)
    assert code == 2
    assert "without https://" in said
    assert not folder.exists()


@pytest.mark.parametrize("name", ["hub.example.org", "hub", "hub_1", "*.example.org", "10.0.0.7", "::1"])
def test_what_hospitals_type_before_the_port_can_be_certified(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert typed(capsys, "coordinator", "init", tmp_path / "hub", "--name-in-certificate", name)[0] == 0


def test_a_new_certificate_is_for_host_names_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ("--home", tmp_path / "hub")
    assert typed(capsys, "coordinator", "init", where[1], "--name-in-certificate", "hub")[0] == 0
    before = (tmp_path / "hub" / "server.crt").read_bytes()
    code, said = typed(capsys, "coordinator", "certificate", *where, "--name-in-certificate", "https://hub")
    assert code == 2
    assert "without https://" in said
    assert (tmp_path / "hub" / "server.crt").read_bytes() == before
    assert typed(capsys, "coordinator", "certificate", *where)[0] == 0


@pytest.mark.parametrize(
    "address", ["hub.example.org", "https://hub.example.org:9443", ":9443", "hub:0", "hub:99999", "hub:port"]
)
def test_a_coordinators_address_is_a_host_and_a_port(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, address: str
) -> None:
    folder = tmp_path / "site"
    code, said = typed(capsys, "site", "init", folder, "--coordinator", address, "--data", "patients.csv")
    assert code == 2
    assert "HOST:PORT" in said
    assert not folder.exists()


@pytest.mark.parametrize("address", ["hub.example.org:9443", "[::1]:9443"])
def test_a_table_that_is_not_there_yet_is_noted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, address: str
) -> None:
    missing = typed(capsys, "site", "init", tmp_path / "a", "--coordinator", address, "--data", "p.csv")
    assert missing[0] == 0
    assert "no table yet" in missing[1]
    (tmp_path / "p.csv").write_text("age\n")
    there = typed(capsys, "site", "init", tmp_path / "b", "--coordinator", address, "--data", "../p.csv")
    assert there[0] == 0
    assert "no table yet" not in there[1]


def test_a_hospital_that_is_not_enrolled_is_told_how(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "site"
    typed(capsys, "site", "init", folder, "--coordinator", "hub:9443", "--data", "p.csv")
    code, said = typed(capsys, "site", "status", "--home", folder)
    assert code == 2
    assert "not enrolled" in said
    assert "site enrol" in said
    code, said = typed(capsys, "site", "enrol", "--home", folder, "--token-file", tmp_path / "none")
    assert code == 2
    assert "the token cannot be read" in said
    assert "--resume" not in said
