"""Enrolling at a coordinator: a token and public keys go out, a name and the coordinator's key come back."""

import hashlib
import json
import ssl
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import httpx

from clinimeta.client.config import Home
from clinimeta.client.keys import identity, node_key, public_pem
from clinimeta.common.enrolment import Facts, Said, Saying, Verdict, Wanted, prove
from clinimeta.common.errors import UserError
from clinimeta.common.files import write_atomically
from clinimeta.common.receipts import Checkpoint

TIMEOUT_S = 20.0
LOST_CA = "restore ca.crt from a backup, or let the coordinator's operator hand theirs over; it is no secret"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Under which name the hospital is known; the coordinator's name and public key (hexadecimal)."""

    site: str
    coordinator: str
    coordinator_key: str

    @staticmethod
    def of(home: Home) -> "Enrolment":
        """As `enrol` wrote it.

        Raises:
            UserError: the hospital is not enrolled.
        """
        try:
            return Enrolment(**json.loads(home.enrolment.read_text()))
        except FileNotFoundError:
            raise UserError(
                "this hospital is not enrolled",
                where=str(home.path),
                remedy="ask the coordinator for a token: clinimeta site enrol --token TOKEN",
            ) from None


def enrol(home: Home, token: str, new: Home | None = None) -> tuple[Enrolment, str]:
    """Enrol with a token of the coordinator's; what came back, and the state: waiting or approved.

    The token holds a digest of the coordinator's certificate authority, so no certificate is taken on trust.
    Keys are those in the folder `new` where it is given, and what came back is written there.
    Asked again with the same token and keys, the coordinator says the same again.

    Raises:
        UserError: the coordinator cannot be reached, is not the token's, or refuses.
    """
    secret, _, digest = token.rpartition(".")
    if not secret or len(digest) != 32:
        raise UserError("this is not a token", expected="the whole line that `invite` printed")
    address, home = home.settings().coordinator.address, new or home
    with _reaching(address), httpx.Client(verify=False, timeout=TIMEOUT_S) as client:  # noqa: S501
        certificate = client.get(f"https://{address}/v1/enrolment/ca").raise_for_status().content
    if hashlib.sha256(certificate).hexdigest()[:32] != digest:
        raise UserError(
            "whoever answers is not the coordinator that gave the token",
            where=address,
            found="another certificate authority",
            remedy="check the address; if it is right, somebody is in between: tell the coordinator",
        )
    write_atomically(home.ca_certificate, certificate)
    key = node_key(home)
    own = identity(home, "")
    wanted = Wanted(secret, public_pem(key), own.public, f"clinimeta {version('clinimeta')}")
    proofs = prove(wanted, key, own)
    body = {
        "token": secret,
        "node_key": wanted.node_key.hex(),
        "identity_key": wanted.identity_key.hex(),
        "software": wanted.software,
        "node_proof": proofs[0].hex(),
        "identity_proof": proofs[1].hex(),
    }
    found = _post(home, address, "enrol", body).json()
    enrolment = Enrolment(found["site"], found["name"], found["identity"])
    write_atomically(home.enrolment, json.dumps(asdict(enrolment), indent=1).encode())
    return enrolment, found["state"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How the hospital stands: waiting, approved or revoked; its clock; the last receipt.

    `proposals` are digests of plans that hospitals are asked about.
    """

    state: str
    ahead_s: float
    receipt: tuple[Checkpoint, bytes] | None
    proposals: tuple[str, ...] = ()


def standing(home: Home, facts: Facts | None = None) -> Standing:
    """Ask the coordinator, and tell it these facts.

    Raises:
        UserError: the coordinator cannot be reached, or does not know the hospital's key.
    """
    found = _say(home, "status", facts.model_dump_json() if facts else "")
    theirs = datetime.fromisoformat(found["time"])
    receipt = None
    if "receipt" in found:
        made = Checkpoint.from_bytes(bytes.fromhex(found["checkpoint"]))
        receipt = made, bytes.fromhex(found["receipt"])
    ahead = (datetime.now(UTC) - theirs).total_seconds()
    return Standing(found["state"], ahead, receipt, tuple(found.get("proposals", ())))


def started(home: Home) -> None:
    """Tell the coordinator that this hospital's SuperNode starts anew.

    Raises:
        UserError: the coordinator cannot be reached, or does not know the hospital's key.
    """
    _say(home, "started")


def proposed(home: Home, plan: str) -> bytes:
    """The plan of this digest, as the coordinator has it, unchecked.

    Raises:
        UserError: the coordinator cannot be reached, or does not ask about it.
    """
    return _ask(home, "proposal", plan).content


def tell_verdict(home: Home, verdict: Verdict) -> None:
    """Say what this hospital would answer to a plan.

    Raises:
        UserError: the coordinator cannot be reached, or does not ask about it.
    """
    _ask(home, "verdict", verdict.model_dump_json())


def fetch_roster(home: Home) -> bytes | None:
    """The signed roster that the coordinator hands out, unchecked; None where it has none.

    Raises:
        UserError: the coordinator cannot be reached.
    """
    address, context = home.settings().coordinator.address, _context(home)
    with _reaching(address), httpx.Client(verify=context, timeout=TIMEOUT_S) as client:
        reply = client.get(f"https://{address}/v1/enrolment/roster")
    return reply.content if reply.status_code == 200 else None


def _say(home: Home, what: Saying, facts: str = "") -> dict[str, Any]:
    found: dict[str, Any] = _ask(home, what, facts).json()
    return found


def _ask(home: Home, what: Saying, facts: str = "") -> httpx.Response:
    own = identity(home, "")
    said = Said(what, own.public, datetime.now(UTC).isoformat(), facts)
    body = {"identity_key": own.public.hex(), "at": said.at, "proof": own.sign(said.message).hex()}
    if facts:
        body["facts"] = facts
    return _post(home, home.settings().coordinator.address, what, body)


def _post(home: Home, address: str, what: str, body: dict[str, str]) -> httpx.Response:
    with _reaching(address), httpx.Client(verify=_context(home), timeout=TIMEOUT_S) as client:
        reply = client.post(f"https://{address}/v1/enrolment/{what}", json=body)
    if reply.status_code == 200:
        return reply
    try:
        text = str(reply.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = f"status {reply.status_code}"
    raise UserError("the coordinator refuses", where=address, found=text, remedy="ask its operator")


def _context(home: Home) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(home.ca_certificate))
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            "the certificate of the coordinator's authority cannot be read",
            where=str(home.ca_certificate),
            found=type(error).__name__,
            remedy=LOST_CA,
        ) from None


class _reaching:  # noqa: N801 (reads as a phrase)
    """Turns failures of the network into an error that says what to look at."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, httpx.HTTPError | ssl.SSLError):
            raise UserError(
                "the coordinator cannot be reached",
                where=self._address,
                found=f"{type(error).__name__}: {error}",
                expected="an answer over TLS, with a certificate of the coordinator's",
                remedy="check the address, the firewall (one outbound port), HTTPS_PROXY, and this clock",
            ) from None
