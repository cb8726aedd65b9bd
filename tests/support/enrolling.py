"""A coordinator's enrolment in this process, and hospitals that ask it for something."""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient

from clinimeta.client.keys import public_pem
from clinimeta.common.enrolment import Said, Wanted, prove
from clinimeta.common.secagg.identity import Identity
from clinimeta.server import enrolment
from clinimeta.server.database import Database

HOUR = timedelta(hours=1)


@dataclass(slots=True)
class Hub:
    """A coordinator's enrolment, asked as over the network."""

    database: Database
    http: TestClient
    deactivated: list[int] = field(default_factory=list)

    def invite(self, site: str = "ulm", **options: Any) -> str:
        return enrolment.invite(self.database, site, HOUR, "operator", **options)

    def post(self, what: str, body: Any) -> int:
        return self.http.post(
            f"/v1/enrolment/{what}",
            content=json.dumps(body),  # not json=, which cannot write half a letter
            headers={"content-type": "application/json"},
        ).status_code

    def sites(self) -> dict[str, str]:
        return {site.name: site.state for site in enrolment.known(self.database)}


@dataclass(frozen=True, slots=True)
class Hospital:
    """Keys of somebody who asks to be enrolled."""

    node: ec.EllipticCurvePrivateKey
    own: Identity

    def wanted(self, token: str) -> Wanted:
        return Wanted(token, public_pem(self.node), self.own.public, "clinimeta 0.1")

    def body(self, token: str) -> dict[str, Any]:
        return body_of(self.wanted(token), *prove(self.wanted(token), self.node, self.own))

    def says(self, what: Any, at: datetime | str) -> dict[str, Any]:
        text = at if isinstance(at, str) else at.isoformat()
        said = Said(what, self.own.public, text)
        return {
            "identity_key": self.own.public.hex(),
            "at": text,
            "proof": self.own.sign(said.message).hex(),
        }


def hospital(number: int = 1) -> Hospital:
    return Hospital(ec.generate_private_key(ec.SECP384R1()), Identity("", bytes([number]) * 32))


def body_of(wanted: Wanted, node_proof: bytes, identity_proof: bytes) -> dict[str, Any]:
    return {
        "token": wanted.token,
        "node_key": wanted.node_key.hex(),
        "identity_key": wanted.identity_key.hex(),
        "software": wanted.software,
        "node_proof": node_proof.hex(),
        "identity_proof": identity_proof.hex(),
    }
