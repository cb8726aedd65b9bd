"""Enrolment over HTTPS: the few requests that a hospital makes before it is known (`/v1/enrolment/...`)."""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, StringConstraints

from clinimeta.common.enrolment import Facts as Told
from clinimeta.common.enrolment import Said, Saying, Verdict, Wanted, is_said, proves
from clinimeta.common.errors import RecordError, UserError
from clinimeta.common.private_files import read_secret
from clinimeta.common.receipts import Checkpoint
from clinimeta.common.secagg.identity import Identity
from clinimeta.server import enrolment, proposals
from clinimeta.server.config import Home
from clinimeta.server.database import Database
from clinimeta.server.sightings import Facts, Lookout
from clinimeta.server.witness import newest, witness

_NOBODY = (
    "no hospital has this key, or it did not sign this, or not just now (clocks at most 5 minutes apart)"
)

Short = Annotated[str, StringConstraints(max_length=4096)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnrolBody(_Body):
    """What a hospital sends; keys and signatures in hexadecimal."""

    token: Short
    node_key: Short
    identity_key: Short
    software: Short
    node_proof: Short
    identity_proof: Short


class SaidBody(_Body):
    """Who says it, and when, proven by a signature."""

    identity_key: Short
    at: Short
    proof: Short
    facts: Short = ""


def enrolment_app(home: Home, deactivate: Callable[[int], object]) -> FastAPI:
    """The application behind `/v1/enrolment/`; `deactivate` tells Flower that a node is not there (any more).

    Flower lets nobody connect as a node that it believes to be there, and believes so for a minute after a
    hard end. A hospital that starts says so first.
    """
    app = FastAPI(title="clinimeta enrolment", docs_url=None, redoc_url=None, openapi_url=None)
    database = Database.open(home.database)
    settings = home.settings()
    own = Identity(settings.name, read_secret(home.identity_key))
    lookout = Lookout(database)

    @app.exception_handler(RequestValidationError)
    def unreadable(_request: Request, _why: RequestValidationError) -> JSONResponse:
        return _error("the request cannot be read", 422)  # FastAPI's own answer repeats what was sent

    @app.get("/v1/enrolment/ca")
    def ca() -> PlainTextResponse:
        return PlainTextResponse(home.ca_certificate.read_text())

    @app.get("/v1/enrolment/roster")
    def roster() -> Response:
        if not home.roster.exists():
            return _error("there is no roster", 404)
        return Response(home.roster.read_bytes(), media_type="application/json")

    @app.post("/v1/enrolment/enrol")
    def enrol(body: EnrolBody) -> JSONResponse:
        try:
            wanted = Wanted(
                body.token, bytes.fromhex(body.node_key), bytes.fromhex(body.identity_key), body.software
            )
            proofs = bytes.fromhex(body.node_proof), bytes.fromhex(body.identity_proof)
        except ValueError:
            return _error("the request cannot be read", 422)
        if not proves(wanted, *proofs):
            return _error("the request is not signed by the keys that it brings", 422)
        try:
            site = enrolment.enrol(
                database, body.token, enrolment.Keys(wanted.node_key, wanted.identity_key), body.software
            )
        except UserError as error:
            return _error(error.what, 403)
        return JSONResponse(
            {"site": site.name, "state": site.state, "name": own.name, "identity": own.public.hex()}
        )

    last_start: dict[str, str] = {}

    def said_by(what: Saying, body: SaidBody) -> enrolment.Site | None:
        """Who says so; None where it is nobody that is known, or not said just now."""
        try:
            said = Said(what, bytes.fromhex(body.identity_key), body.at, body.facts)
            if not is_said(said, bytes.fromhex(body.proof), enrolment.now()):
                return None
        except (ValueError, TypeError):
            return None
        known = (site for site in enrolment.known(database) if site.keys.identity == said.identity_key)
        return next(known, None)

    @app.post("/v1/enrolment/status")
    def status(body: SaidBody) -> JSONResponse:
        if (site := said_by("status", body)) is None:
            return _error(_NOBODY, 403)
        lookout.saw(site.name, _facts(site.state, body.facts))
        registered = site.state != "approved" or site.node_id is not None
        state = site.state if registered else "waiting"
        found: dict[str, Any] = {"site": site.name, "state": state, "time": enrolment.now().isoformat()}
        if site.state == "approved":
            found["proposals"] = proposals.open_proposals(database, enrolment.now())
        if (receipt := newest(database, site.name, site.keys.identity)) is not None:
            found |= {"checkpoint": receipt[0].to_bytes().hex(), "receipt": receipt[1].hex()}
        return JSONResponse(found)

    @app.post("/v1/enrolment/proposal")
    def proposal(body: SaidBody) -> Response:
        site = said_by("proposal", body)
        if site is None or site.state != "approved":
            return _error(_NOBODY, 403)
        content = proposals.content_of(database, body.facts)
        return _error("nobody asked about this plan", 404) if content is None else Response(content)

    @app.post("/v1/enrolment/verdict")
    def verdict(body: SaidBody) -> JSONResponse:
        site = said_by("verdict", body)
        if site is None or site.state != "approved":
            return _error(_NOBODY, 403)
        try:
            told = Verdict.model_validate_json(body.facts)
            made = Checkpoint.from_bytes(bytes.fromhex(told.checkpoint))
            if not made.is_of(site.keys.identity):
                return _error("the checkpoint is not signed by this hospital", 422)
            proposals.hear(database, site.name, told.plan, told.codes, enrolment.now())
        except (ValueError, RecordError):
            return _error("the request cannot be read", 422)
        except UserError as error:
            return _error(error.what, 404)
        witness(database, own, site.name, site.keys.identity, made)
        return JSONResponse({})

    @app.post("/v1/enrolment/started")
    def started(body: SaidBody) -> JSONResponse:
        site = said_by("started", body)
        if site is None or body.at <= last_start.get(site.name, ""):
            return _error(_NOBODY, 403)
        last_start[site.name] = body.at
        if site.node_id is not None:
            deactivate(site.node_id)
        return JSONResponse({})

    return app


def _facts(state: str, told: str) -> Facts:
    """What a hospital tells of itself, as far as it can be read."""
    try:
        found = Told.model_validate_json(told) if told else None
    except ValueError:
        found = None
    if found is None:
        return Facts(state)
    software = "".join(sign for sign in found.software if sign.isprintable())
    return Facts(state, software, policy=found.policy, budget_left=found.budget_left)


def ca_digest(certificate: bytes) -> str:
    """What a token says about the certificate authority: half a SHA-256, hexadecimal."""
    return hashlib.sha256(certificate).hexdigest()[:32]


def _error(text: str, status: int) -> JSONResponse:
    body: dict[str, Any] = {"error": text}
    return JSONResponse(body, status)
