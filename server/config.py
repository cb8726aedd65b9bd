"""The coordinator's folder: its settings (coordinator.toml), and where everything else in it lies."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from clinimeta.common.errors import UserError
from clinimeta.common.settings import Settings, parse

Port = Annotated[int, Ge(1), Le(65535)]

TEMPLATE = """\
# The coordinator of a clinimeta federation. Unknown keys are refused; restart after a change.

name = {name}  # what hospitals read in their records

[public]                       # what hospitals reach: Flower's Fleet API, enrolment and health, over TLS
host = {host}  # 0.0.0.0: every network card; name one to listen there only
port = {port}
largest_request_mib = 256      # a larger request is refused

[control]                      # on this machine only, and with a secret
port = {control_port}

[rounds]
workers = 1                    # studies that run at the same time
poll_s = 0.5                   # how often the round loop looks for answers

[health]                       # /healthz, /readyz and /metrics, on this machine only
port = {health_port}
"""


class Public(Settings):
    """The listener that hospitals reach."""

    host: str = "0.0.0.0"  # noqa: S104 (it is the public one)
    port: Port = 9443
    largest_request_mib: Annotated[int, Ge(1)] = 256


class Control(Settings):
    """The listener on loopback: the Control and Runtime APIs."""

    port: Port = 9444


class Rounds(Settings):
    """How rounds are driven."""

    workers: Annotated[int, Ge(1), Le(16)] = 1
    poll_s: Annotated[float, Gt(0)] = 0.5


class Health(Settings):
    """The listener for monitoring, on loopback."""

    port: Port = 9445


class CoordinatorSettings(Settings):
    """`coordinator.toml`."""

    name: Annotated[str, MinLen(1)]
    public: Public = Public()
    control: Control = Control()
    rounds: Rounds = Rounds()
    health: Health = Health()


@dataclass(frozen=True, slots=True)
class Home:
    """A coordinator's folder, as `clinimeta coordinator init` makes it."""

    path: Path

    def settings(self) -> CoordinatorSettings:
        """The settings.

        Raises:
            UserError: no coordinator's folder, no TOML, an unknown key or a value that does not fit.
        """
        file = self.path / "coordinator.toml"
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                "this is not a coordinator's folder",
                where=str(self.path),
                found="no coordinator.toml in it",
                remedy=f"make one: clinimeta coordinator init {self.path}",
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                "the settings are not valid TOML",
                where=str(file),
                found=str(error),
                remedy="correct that line",
            ) from None
        return parse(CoordinatorSettings, values, str(file))

    @property
    def ca_certificate(self) -> Path:
        """What hospitals check the server by; public."""
        return self.path / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Signs server certificates; may be taken off this machine."""
        return self.path / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.path / "server.crt"

    @property
    def key(self) -> Path:
        """The server certificate's key."""
        return self.path / "server.key"

    @property
    def identity_key(self) -> Path:
        """The coordinator's Ed25519 key, which counter-signs hospitals' ledgers."""
        return self.path / "identity.key"

    @property
    def superexec_secret(self) -> Path:
        """Shared with the round loop, which claims runs with it."""
        return self.path / "superexec.secret"

    @property
    def control_secret(self) -> Path:
        """Without it the Control API answers nobody, also on loopback."""
        return self.path / "control.secret"

    @property
    def database(self) -> Path:
        """Hospitals, invitations, experiments and events."""
        return self.path / "coordinator.sqlite"

    @property
    def roster(self) -> Path:
        """The roster that the consortium has signed; handed out, not believed."""
        return self.path / "roster.json"

    @property
    def link_database(self) -> Path:
        """Flower's own state."""
        return self.path / "link.sqlite"

    @property
    def flower(self) -> Path:
        """Flower's home folder."""
        return self.path / "flower"

    @property
    def experiments(self) -> Path:
        """A run directory for each experiment."""
        return self.path / "experiments"

    @property
    def console_settings(self) -> Path:
        """How people sign in to the console through their organisation's provider; need not be there."""
        return self.path / "console.toml"

    @property
    def console(self) -> Path:
        """Accounts and sessions of the operator's console."""
        return self.path / "console.sqlite"

    @property
    def lock(self) -> Path:
        """Held while the coordinator runs; holds its pid."""
        return self.path / "coordinator.pid"
