"""The frame of a console: screens and actions, each as a page and as JSON, for those who may.

A `Screen` is looked at: GET its path for the page, GET /api/v1 and its path for the same values as JSON.
An `Action` changes something: POST, as a form or as JSON; it asks for a reason, and writes down who and why.
"""

import hmac
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from clinimeta.common.errors import UserError
from clinimeta.common.web.accounts import LONGEST, Accounts, Session
from clinimeta.common.web.roles import May, Who

API: Final = "/api/v1"
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=500)]
"""Why something is changed, in a person's words."""


class Change(BaseModel):
    """What every changing request says; actions add fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason


@dataclass(frozen=True, slots=True)
class Screen:
    """What is looked at.

    `view` takes the console, who looks, and the path's and query's values by name; it gives a frozen value.
    `draw` makes its plots, for the page only.
    """

    path: str
    may: May
    title: str
    view: Callable[..., Any]
    template: str
    nav: bool = False
    draw: Callable[[Any], Mapping[str, Any]] = field(default=lambda _view: {})


@dataclass(frozen=True, slots=True)
class Done:
    """What an action did, in a sentence; `secret` is shown this once (a token, a link), and kept nowhere."""

    notice: str
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Action:
    """What changes something: `do(console, who, body, **path)` says what it did; then `then` is shown."""

    path: str
    may: May
    title: str
    body: type[Change]
    do: Callable[..., Done]
    then: str


@dataclass(frozen=True, slots=True)
class Shell:
    """Screens and actions over one console (whatever the views take), and who may use them."""

    name: str
    console: Any
    accounts: Accounts
    environment: Environment
    screens: Sequence[Screen]
    actions: Sequence[Action]
    tls: bool = False
    providers: Mapping[str, str] = field(default_factory=dict)

    @property
    def cookie(self) -> str:
        """The session cookie's name; browsers hold `__Host-` to what it promises."""
        return "__Host-clinimeta" if self.tls else "clinimeta"

    def app(self) -> FastAPI:
        """The application, without the layer of `headers`."""
        app = FastAPI(title=self.name, docs_url=None, redoc_url=None, openapi_url=f"{API}/openapi.json")
        app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
        for screen in self.screens:
            app.add_api_route(screen.path, self._page(screen), include_in_schema=False)
            app.add_api_route(
                API + screen.path.rstrip("/") if screen.path != "/" else f"{API}/",
                self._json(screen),
                response_model=inspect.signature(screen.view, eval_str=True).return_annotation,
                summary=screen.title,
                responses=_ERRORS,
                operation_id=screen.view.__name__,
            )
        for action in self.actions:
            app.add_api_route(action.path, self._form(action), methods=["POST"], include_in_schema=False)
            app.add_api_route(
                API + action.path,
                self._post(action),
                methods=["POST"],
                response_model=Done,
                summary=action.title,
                responses=_ERRORS,
                operation_id=action.do.__name__,
            )
        app.add_exception_handler(Exception, self._failed)
        for kind in (UserError, RequestValidationError, ValidationError, HTTPException):
            app.add_exception_handler(kind, self._failed)
        return app

    # Who asks

    def session(self, request: Request) -> Session | None:
        """The session of a request's cookie."""
        secret = request.cookies.get(self.cookie, "")
        return self.accounts.session(secret) if secret else None

    def require(self, request: Request, may: May) -> tuple[Who, Session | None]:
        """Who asks, by session or by token.

        Raises:
            HTTPException: 401 nobody; 403 somebody who may not.
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        session = None
        if kind.lower() == "bearer":
            who = self.accounts.bearer(token)
        else:
            session = self.session(request)
            who = session.who if session else None
        if who is None:
            raise HTTPException(401, "sign in first")
        if not who.may(may):
            raise HTTPException(403, f"your role ({who.role}) may not do this")
        return who, session

    def require_unforged(self, request: Request, session: Session | None, given: str) -> None:
        """Do nothing, if a changing request comes from our own page, or from a program with a token.

        Raises:
            HTTPException: 403 another site's page had it sent.
        """
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "this request came from another site")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            raise HTTPException(403, "this request came from another site")
        if session is not None and not _same(given, session.csrf):
            raise HTTPException(403, "the form is out of date: load the page again")

    def set_session(self, answer: Response, secret: str) -> None:
        """Give the browser the session's cookie."""
        answer.set_cookie(
            self.cookie,
            secret,
            max_age=int(LONGEST.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=self.tls,
            path="/",
        )

    # Answers

    def page(
        self, request: Request, template: str, session: Session | None, status: int = 200, **values: Any
    ) -> Response:
        """A page from its template."""
        who = session.who if session else None
        text = self.environment.get_template(template).render(
            request=request,
            path=request.url.path,
            name=self.name,
            who=who,
            csrf=session.csrf if session else "",
            navigation=[one for one in self.screens if one.nav and who is not None and who.may(one.may)],
            notice=request.cookies.get("notice", ""),
            May=May,
            status=status,
            **values,
        )
        response = HTMLResponse(text, status)
        if "notice" in request.cookies:
            response.delete_cookie("notice", path="/")
        return response

    def _page(self, screen: Screen) -> Callable[..., Any]:
        def show(request: Request, **values: Any) -> Response:
            who, session = self.require(request, screen.may)
            view = screen.view(self.console, who, **values)
            plots = screen.draw(view)
            return self.page(request, screen.template, session, view=view, screen=screen, plots=plots)

        return _signed(show, screen.view)

    def _json(self, screen: Screen) -> Callable[..., Any]:
        def show(request: Request, **values: Any) -> Any:
            who, _ = self.require(request, screen.may)
            return screen.view(self.console, who, **values)

        return _signed(show, screen.view)

    def _post(self, action: Action) -> Callable[..., Any]:
        def change(request: Request, body: Any, **values: Any) -> Any:
            who, session = self.require(request, action.may)
            self.require_unforged(request, session, request.headers.get("x-csrf-token", ""))
            return action.do(self.console, who, body, **values)

        return _signed(change, action.do, body=action.body)

    def _form(self, action: Action) -> Callable[..., Any]:
        async def change(request: Request, **values: Any) -> Response:
            who, session = self.require(request, action.may)
            pairs = form_of(await request.body())
            self.require_unforged(request, session, dict(pairs).get("csrf", ""))
            body = action.body.model_validate(_fields(action.body, pairs))
            done = await run_in_threadpool(action.do, self.console, who, body, **values)
            then = action.then.format(**{name: quote(str(value)) for name, value in values.items()})
            if done.secret:
                return self.page(request, "shown_once.html", session, done=done, then=then)
            notice = done.notice
            answer = RedirectResponse(then, 303)
            answer.set_cookie(
                "notice", _plain(notice), max_age=20, httponly=True, samesite="strict", secure=self.tls
            )
            return answer

        return _signed(change, action.do)

    def _failed(self, request: Request, error: Exception) -> Response:
        status, text, more = _explained(error)
        if request.url.path.startswith(API):
            return JSONResponse({"error": {"text": text, **more}}, status)
        if status == 401 and request.method == "GET":
            return RedirectResponse(f"/sign-in?then={_safe(request)}", 303)
        return self.page(request, "error.html", self.session(request), status, text=text, more=more)


_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "It cannot be done; the answer says why and what to do."},
    401: {"description": "Nobody is signed in."},
    403: {"description": "The role does not allow it, or the request is forged."},
    404: {"description": "There is no such thing."},
    422: {"description": "The request cannot be read."},
}


def _explained(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Status, what happened, and what belongs to it; never a stack, never what was sent."""
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), {}
    if isinstance(error, RequestValidationError | ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return 422, f"{place or 'the request'}: {first['msg']}", {}
    if isinstance(error, UserError):
        known = {name: getattr(error, name, "") for name in ("where", "found", "expected", "remedy")}
        missing = error.what.startswith(("there is no such", "no hospital of this name"))
        return 404 if missing else 400, error.what, {name: text for name, text in known.items() if text}
    return 500, "something went wrong here; the console's log says what", {}


def _signed(endpoint: Callable[..., Any], like: Callable[..., Any], body: Any = None) -> Callable[..., Any]:
    """`endpoint` with the parameters that `like` has after console, who (and body), for FastAPI to read."""
    parameters = list(inspect.signature(like, eval_str=True).parameters.values())
    named = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for one in parameters
        if one.name.strip("_") not in ("console", "who", "body")
    ]
    own = [inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)]
    if body is not None:
        own.append(inspect.Parameter("body", inspect.Parameter.KEYWORD_ONLY, annotation=body))
    endpoint.__signature__ = inspect.Signature([*own, *named])  # type: ignore[attr-defined]
    endpoint.__annotations__ = {one.name: one.annotation for one in (*own, *named)}
    return endpoint


def form_of(body: bytes) -> list[tuple[str, str]]:
    """The fields of a form, in order."""
    return parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=2000)


def _fields(body: type[Change], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A form's fields for `body`; those that take several values as lists."""
    found: dict[str, Any] = {name: value for name, value in pairs if name != "csrf"}
    for name, one in body.model_fields.items():
        if typing.get_origin(one.annotation) in (list, tuple):
            found[name] = [value for key, value in pairs if key == name]
    return found


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _plain(text: str) -> str:
    return "".join(
        sign if sign.isascii() and sign.isprintable() and sign not in ';,"\\' else " " for sign in text
    )


def _safe(request: Request) -> str:
    return quote(request.url.path)
