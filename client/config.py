"""A hospital's folder: its settings (site.toml), and where everything else in it lies."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MinLen
from pydantic import Field

from clinimeta.common.errors import UserError
from clinimeta.common.settings import Settings, parse

Port = Annotated[int, Ge(1), Le(65535)]

TEMPLATE = """\
# A hospital in a clinimeta federation. Unknown keys are refused; `clinimeta site check` says what is wrong.

[coordinator]
address = {address}  # HOST:PORT, the one outbound connection; HTTPS_PROXY and NO_PROXY count
tell = true                    # the policy's digest and what is left of the budget, to the operator

[data]                         # read here, and never sent
kind = "csv"                   # or parquet, sql, fhir, omop: docs/sources.md
path = {data}  # relative to this file

[policy]                       # what this hospital lets happen; each default is the safe one
# A study is answered only after a person has approved it: clinimeta site approve
secure_aggregation = "required"  # "optional": the coordinator may read this hospital's answer by itself
min_cohort = 3                 # fewest hospitals whose sum may be opened
min_rows = 20                  # fewer rows than this: nothing is answered
rounds_a_day = 1000            # answers made from the table
payload_bytes = 67_108_864     # largest order, and largest answer
lifetime_epsilon = 10.0        # what all studies together may ever spend on one patient
# All keys: docs/site-policy.md

[consortium]                   # for secure aggregation: who says who the hospitals are
key = ""                       # its public key, from people: compare its fingerprint by telephone

[local]                        # on this machine only
port = {port}                  # Flower's SuperNode to our executor
health_port = {health_port}    # /healthz, /readyz, /metrics
device = "cpu"                 # where torch computes: cpu or cuda
"""


class Coordinator(Settings):
    """Whom the hospital talks to."""

    address: Annotated[str, MinLen(3)]
    tell: bool = True


class Local(Settings):
    """What the daemon uses of this machine."""

    port: Port = 9543
    health_port: Port = 9545
    device: str = "cpu"


class Consortium(Settings):
    """Who says who the hospitals are: the public key of the consortium, from people, not from the network."""

    key: str = ""


class SiteSettings(Settings):
    """`site.toml`; data and policy are read further by `sources.base` and `policy`."""

    coordinator: Coordinator
    data: dict[str, Any]
    local: Local = Local()
    policy: dict[str, Any] = Field(default_factory=dict)
    consortium: Consortium = Consortium()


@dataclass(frozen=True, slots=True)
class Home:
    """A hospital's folder, as `clinimeta site init` makes it."""

    path: Path

    def settings(self) -> SiteSettings:
        """The settings.

        Raises:
            UserError: no site's folder, no TOML, an unknown key or a value that does not fit.
        """
        file = self.path / "site.toml"
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                "this is not a site's folder",
                where=str(self.path),
                found="no site.toml in it",
                remedy=f"make one: clinimeta site init {self.path}",
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                "the settings are not valid TOML",
                where=str(file),
                found=str(error),
                remedy="correct that line",
            ) from None
        return parse(SiteSettings, values, str(file))

    @property
    def ca_certificate(self) -> Path:
        """What the coordinator's server is checked by."""
        return self.path / "ca.crt"

    @property
    def node_key(self) -> Path:
        """The SuperNode's key (P-384, PEM): who connects."""
        return self.path / "node.key"

    @property
    def identity_key(self) -> Path:
        """The hospital's Ed25519 key: who answers, and who signs the ledger."""
        return self.path / "identity.key"

    @property
    def superexec_secret(self) -> Path:
        """Shared between the SuperNode and our executor."""
        return self.path / "superexec.secret"

    @property
    def enrolment(self) -> Path:
        """Under which name the hospital is known, and the coordinator's public key."""
        return self.path / "enrolment.json"

    @property
    def state(self) -> Path:
        """Ledger, budget, journal and approvals; 0700."""
        return self.path / "state"

    @property
    def roster(self) -> Path:
        """The signed roster, as it was fetched last."""
        return self.state / "roster.json"

    @property
    def rounds(self) -> Path:
        """The journal of secure aggregation."""
        return self.state / "rounds"

    @property
    def ledger(self) -> Path:
        """What has left."""
        return self.state / "ledger.sqlite"

    @property
    def budget(self) -> Path:
        """What patients' privacy has cost."""
        return self.state / "budget.sqlite"

    @property
    def approvals(self) -> Path:
        """What people here have decided about studies."""
        return self.state / "approvals"

    @property
    def policies(self) -> Path:
        """Settings that were in force before, by their policy's digest: ledger records name it."""
        return self.state / "policies"

    @property
    def changes(self) -> Path:
        """What was changed through the console: who, when, why."""
        return self.state / "changes.jsonl"

    @property
    def console(self) -> Path:
        """Accounts and sessions of the hospital's console."""
        return self.path / "console.sqlite"

    @property
    def former(self) -> Path:
        """Keys that were replaced, each with the ledger that it signed."""
        return self.path / "former"

    @property
    def flower(self) -> Path:
        """Flower's home folder."""
        return self.path / "flower"

    @property
    def lock(self) -> Path:
        """Held while the daemon runs; holds its pid."""
        return self.path / "site.pid"
