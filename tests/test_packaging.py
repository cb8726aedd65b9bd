"""What is in `packaging/` is hardened as its pages say, and fits the commands that are installed."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer.main

from clinimeta.client.config import Local
from clinimeta.server.config import Health, Public
from clinimeta.simulations.cli import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ROOT / "packaging"
ROLES = ("coordinator", "site")
HARDENED = {
    "Type": "notify",
    "NotifyAccess": "main",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "SystemCallFilter": "@system-service",
    "MemoryDenyWriteExecute": "yes",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
    "TimeoutStopSec": "40",
    "Restart": "on-failure",
    "KillMode": "mixed",
}
SECRET = re.compile(r"(?i)(token|password|passwd|secret|private.?key|\.key\b|\.pem\b|BEGIN )")


def service(role: str) -> dict[str, str]:
    """The directives of a unit; each may stand once."""
    found: dict[str, str] = {}
    for line in (PACKAGING / "systemd" / f"clinimeta-{role}.service").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            assert name == "After" or name not in found, f"{name} stands twice"
            found[name] = value
    return found


def instructions(role: str) -> list[tuple[str, str]]:
    """The instructions of a Containerfile, in order, with lines that go on joined."""
    text = (PACKAGING / f"Containerfile.{role}").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    whole = [line.strip() for line in lines.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in whole)]


def last_stage(role: str) -> list[tuple[str, str]]:
    found = instructions(role)
    return found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]


def command(words: list[str]) -> click.Command:
    """The command of the CLI that these words name."""
    found: click.Command = typer.main.get_command(app)
    for word in words:
        assert isinstance(found, click.Group), words
        assert word in found.commands, words
        found = found.commands[word]
    return found


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_is_hardened(role: str) -> None:
    found = service(role)
    assert {name: found.get(name) for name in HARDENED} == HARDENED
    assert found["User"] not in ("", "root", "0")


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_starts_a_command_that_exists_in_the_folder_that_it_may_write(role: str) -> None:
    found = service(role)
    program, *words = shlex.split(found["ExecStart"])
    assert Path(program).is_absolute()
    assert Path(program).name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert words[:2] == [role, "up"]
    options = {name for option in command(words[:2]).params for name in option.opts}
    assert words[2:] == ["--home", f"/var/lib/{found['StateDirectory']}"]
    assert "--home" in options


def test_only_the_site_reloads() -> None:
    """SIGHUP would end the coordinator."""
    assert service("site")["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert "ExecReload" not in service("coordinator")


def test_a_site_that_waits_for_its_approval_counts_as_started() -> None:
    assert service("site")["TimeoutStartSec"] == "120"


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_as_somebody_without_rights(role: str) -> None:
    users = [rest for word, rest in last_stage(role) if word == "USER"]
    assert len(users) == 1
    user, _, group = users[0].partition(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("role", ROLES)
def test_an_image_starts_the_daemon_in_its_volume(role: str) -> None:
    stage = dict(last_stage(role))
    assert stage["ENTRYPOINT"] == '["clinimeta"]'
    assert stage["CMD"] == f'["{role}", "up"]'
    home = next(option for option in command([role, "up"]).params if option.name == "home")
    assert f"{home.envvar}=/state" in stage["ENV"]
    assert '"/state"' in stage["VOLUME"]


@pytest.mark.parametrize(
    ("role", "port"), [("coordinator", Health().port), ("site", Local().health_port)], ids=ROLES
)
def test_an_image_is_asked_for_its_health_where_it_answers(role: str, port: int) -> None:
    assert f"http://127.0.0.1:{port}/healthz" in dict(last_stage(role))["HEALTHCHECK"]


def test_only_the_coordinator_is_reached() -> None:
    assert dict(last_stage("coordinator"))["EXPOSE"] == str(Public().port)
    assert "EXPOSE" not in dict(last_stage("site"))


@pytest.mark.parametrize("role", ROLES)
def test_an_image_holds_the_program_and_nothing_else(role: str) -> None:
    copied = [rest for word, rest in instructions(role) if word in ("COPY", "ADD")]
    assert copied == [
        "pyproject.toml README.md LICENSE ./",
        *(f"{folder} {folder}" for folder in ("common", "client", "server", "simulations")),
        "--from=build /opt/clinimeta /opt/clinimeta",
    ]
    assert not [rest for _, rest in instructions(role) if SECRET.search(rest)]


@pytest.mark.parametrize("role", ROLES)
def test_an_image_takes_torch_for_the_cpu_from_its_own_index(role: str) -> None:
    (torch,) = [rest for word, rest in instructions(role) if word == "RUN" and "torch" in rest]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (version,) = [name for name in wanted if name.startswith("torch")]
    assert "--index-url https://download.pytorch.org/whl/cpu" in torch
    assert f'"{version}"' in torch


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_holds_no_secret(role: str) -> None:
    assert not [name for name, value in service(role).items() if SECRET.search(value)]
