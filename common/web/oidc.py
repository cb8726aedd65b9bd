"""Signing in through an organisation's own provider (OpenID Connect: code flow with PKCE, state and nonce).

An option, from `console.toml` beside the console's accounts; needs the extra `oidc`. Roles come from a
claim; who has none there gets in nowhere. The provider is trusted for its own names only: an account with a
password of its own is never taken over.
"""

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import structlog
from annotated_types import MinLen
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from clinimeta.common.errors import UserError
from clinimeta.common.private_files import read_secret
from clinimeta.common.settings import Settings, parse
from clinimeta.common.web.roles import Role
from clinimeta.common.web.shell import Shell

log = structlog.get_logger()

COOKIE, LIFE_S, PATIENCE_S = "clinimeta-oidc", 600, 10.0
ALGORITHMS = ("RS256", "ES256", "PS256", "EdDSA")


class Provider(Settings):
    """`[oidc]` of `console.toml`: `roles` says which value of `claim` gives which role; the first that fits.

    `secret_file` (0600) holds the client's secret; `redirect` is the console's own /sign-in/oidc/back.
    """

    title: Annotated[str, MinLen(1)]
    issuer: Annotated[str, MinLen(8)]
    client_id: Annotated[str, MinLen(1)]
    secret_file: str
    redirect: Annotated[str, MinLen(8)]
    claim: str = "groups"
    name_claim: str = "preferred_username"
    roles: Mapping[str, Role]


class ConsoleSettings(Settings):
    """`console.toml`."""

    oidc: Provider


@dataclass(slots=True)
class Client:
    """What a provider says of itself, and how it is asked; `flows` are those that have begun."""

    provider: Provider
    secret: str = field(repr=False)
    flows: dict[str, tuple[str, str, str, float]] = field(default_factory=dict, repr=False)

    def begin(self, cookie: str, now: float) -> str:
        """The provider's address to send the browser to."""
        from authlib.common.security import generate_token

        self.flows = {state: one for state, one in self.flows.items() if one[3] > now}
        state, nonce, verifier = (generate_token(48) for _ in range(3))
        self.flows[state] = (nonce, verifier, _hash(cookie), now + LIFE_S)
        url, _ = self._session().create_authorization_url(
            self._metadata()["authorization_endpoint"], state=state, nonce=nonce, code_verifier=verifier
        )
        return str(url)

    def finish(self, state: str, code: str, cookie: str, now: float) -> tuple[str, Role]:
        """Name and role of whoever came back.

        Raises:
            UserError: the flow is not this browser's, the provider's answer does not hold, or gives no role.
        """
        flow = self.flows.pop(state, None)
        if flow is None or flow[3] < now or not hmac.compare_digest(flow[2], _hash(cookie)):
            raise UserError("this sign-in was not begun in this browser, or too long ago", remedy="try again")
        nonce, verifier, _, _ = flow
        metadata = self._metadata()
        try:
            token = self._session().fetch_token(
                metadata["token_endpoint"], code=code, code_verifier=verifier, timeout=PATIENCE_S
            )
            claims = self._claims(str(token["id_token"]), metadata, nonce, now)
        except UserError:
            raise
        except Exception as error:
            log.warning("a sign-in through the provider failed", error=type(error).__name__)
            raise UserError(
                "the provider's answer does not hold", found=type(error).__name__, remedy="try again"
            ) from None
        return self._who(claims)

    def _claims(self, text: str, metadata: Mapping[str, Any], nonce: str, now: float) -> dict[str, Any]:
        from joserfc import jwt
        from joserfc.jwk import KeySet

        keys = KeySet.import_key_set({"keys": _get(str(metadata["jwks_uri"]))["keys"]})
        token = jwt.decode(text, keys, algorithms=list(ALGORITHMS))
        rules = jwt.JWTClaimsRegistry(
            now=lambda: int(now),
            leeway=60,
            iss={"essential": True, "value": self.provider.issuer},
            aud={"essential": True, "value": self.provider.client_id},
            exp={"essential": True},
            nonce={"essential": True, "value": nonce},
            sub={"essential": True},
        )
        rules.validate(token.claims)
        party = token.claims.get("azp")
        if party not in (None, self.provider.client_id):
            raise UserError("the provider's answer is for another program")
        return dict(token.claims)

    def _who(self, claims: Mapping[str, Any]) -> tuple[str, Role]:
        said = claims.get(self.provider.claim, [])
        values = {said} if isinstance(said, str) else set(said) if isinstance(said, list) else set()
        role = next((role for value, role in self.provider.roles.items() if value in values), None)
        name = claims.get(self.provider.name_claim) or claims["sub"]
        if role is None or role == Role.VIEWER or not isinstance(name, str):
            raise UserError(
                "the provider gives you no role here",
                expected=f"the claim '{self.provider.claim}' with one of: {', '.join(self.provider.roles)}",
                remedy="ask an operator",
            )
        return name, role

    def _metadata(self) -> dict[str, Any]:
        found = _get(f"{self.provider.issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != self.provider.issuer:
            raise UserError("the provider says it is another", where=self.provider.issuer)
        return found

    def _session(self) -> Any:
        from authlib.integrations.requests_client import OAuth2Session

        return OAuth2Session(
            self.provider.client_id,
            self.secret,
            scope="openid profile",
            redirect_uri=self.provider.redirect,
            code_challenge_method="S256",
        )


def read_client(path: Path) -> Client | None:
    """The provider that `console.toml` names; None where there is no such file.

    Raises:
        UserError: the file cannot be used, the secret is open to others, or the extra is not installed.
    """
    if not path.exists():
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("the settings are not valid TOML", where=str(path), found=str(error)) from None
    provider = parse(ConsoleSettings, values, str(path)).oidc
    secret = read_secret(path.parent / provider.secret_file).decode().strip()
    try:
        import authlib  # noqa: F401
    except ImportError:
        raise UserError(
            "sign-in through a provider is not installed", remedy="pip install 'clinimeta[oidc]'"
        ) from None
    if not provider.issuer.startswith(("https://", "http://127.0.0.1:")):
        raise UserError("the provider must be reached over TLS", where=str(path), found=provider.issuer)
    return Client(provider, secret)


def add_oidc(app: FastAPI, shell: Shell, client: Client) -> None:
    """Add the two pages: to the provider, and back."""

    @app.get("/sign-in/oidc", include_in_schema=False)
    async def go(_request: Request) -> Response:
        cookie = secrets.token_urlsafe(32)
        answer = RedirectResponse(await run_in_threadpool(client.begin, cookie, _now(shell)), 303)
        # Lax: the provider sends the browser back from another site, and this cookie must come with it.
        answer.set_cookie(COOKIE, cookie, max_age=LIFE_S, httponly=True, samesite="lax", secure=shell.tls)
        return answer

    @app.get("/sign-in/oidc/back", include_in_schema=False)
    async def back(request: Request, state: str = "", code: str = "", error: str = "") -> Response:
        if error or not code:
            raise HTTPException(403, "the provider did not let you in")
        cookie = request.cookies.get(COOKIE, "")
        name, role = await run_in_threadpool(client.finish, state, code, cookie, _now(shell))
        who = shell.accounts.from_provider(client.provider.issuer, name, role)
        # A page of our own goes on: after a redirect from elsewhere the strict cookie would not come.
        answer = shell.page(request, "signed_in.html", None)
        shell.set_session(answer, shell.accounts.begin(who))
        answer.delete_cookie(COOKIE)
        return answer


def _now(shell: Shell) -> float:
    return shell.accounts.now().timestamp()


def _get(url: str) -> dict[str, Any]:
    import requests

    answer = requests.get(url, timeout=PATIENCE_S)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
