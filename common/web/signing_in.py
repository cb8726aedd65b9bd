"""Signing in and out, links that make an account, and one's own account."""

from datetime import timedelta
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from clinimeta.common.errors import UserError
from clinimeta.common.web.accounts import Session
from clinimeta.common.web.roles import WORDS, May
from clinimeta.common.web.shell import Done, Shell, form_of

TOKEN_DAYS = 90


def add_signing_in(app: FastAPI, shell: Shell) -> None:
    """Add the pages to a console's application."""

    async def fields(request: Request, session: Session | None) -> dict[str, str]:
        found = dict(form_of(await request.body()))
        shell.require_unforged(request, session, found.get("csrf", ""))
        return found

    def signed_in(secret: str, then: str) -> Response:
        answer = RedirectResponse(
            then if then.startswith("/") and not then.startswith(("//", "/\\")) else "/", 303
        )
        shell.set_session(answer, secret)
        return answer

    @app.get("/sign-in", include_in_schema=False)
    def show_sign_in(request: Request, then: str = "/") -> Response:
        return shell.page(request, "sign_in.html", None, then=then, text="", providers=shell.providers)

    @app.post("/sign-in", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        found = await fields(request, None)
        address = request.client.host if request.client else ""
        then = found.get("then", "/")
        try:
            who = await run_in_threadpool(
                shell.accounts.enter, found.get("name", ""), found.get("password", ""), address
            )
            text = "" if who else "name or password is wrong"
        except UserError as error:
            who, text = None, f"{error.what}: {error.remedy}"
        if who is None:
            values: dict[str, Any] = {"then": then, "text": text, "providers": shell.providers}
            return shell.page(request, "sign_in.html", None, 401, **values)
        old = request.cookies.get(shell.cookie, "")
        if old:
            shell.accounts.end(old)
        return signed_in(shell.accounts.begin(who), then)

    @app.post("/sign-out", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        session = shell.session(request)
        await fields(request, session)
        shell.accounts.end(request.cookies.get(shell.cookie, ""))
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(shell.cookie, path="/", secure=shell.tls, httponly=True, samesite="strict")
        return answer

    @app.get("/link/{secret}", include_in_schema=False)
    def show_link(request: Request, secret: str) -> Response:
        found = shell.accounts.linked(secret)
        if found is None:
            raise HTTPException(404, "this link is not valid: it was used, or has expired")
        role, name = found
        return shell.page(request, "link.html", None, role=role, about=WORDS[role], named=name, text="")

    @app.post("/link/{secret}", include_in_schema=False)
    async def use_link(request: Request, secret: str) -> Response:
        given = await fields(request, None)
        found = shell.accounts.linked(secret)
        if found is None:
            raise HTTPException(404, "this link is not valid: it was used, or has expired")
        role, name = found
        try:
            if given.get("password") != given.get("again"):
                raise UserError("the two passwords differ")
            account = await run_in_threadpool(
                shell.accounts.use, secret, given.get("name", ""), given.get("password", "")
            )
        except UserError as error:
            text = ": ".join(part for part in (error.what, error.expected) if part)
            values: dict[str, Any] = {"role": role, "about": WORDS[role], "named": name, "text": text}
            return shell.page(request, "link.html", None, 400, **values)
        who = shell.accounts.enter(account.name, given["password"], "a link")
        assert who is not None, "it was made just now"
        return signed_in(shell.accounts.begin(who), "/")

    @app.get("/account", include_in_schema=False)
    def show_account(request: Request) -> Response:
        who, session = shell.require(request, May.SELF)
        tokens = shell.accounts.tokens(who.name)
        return shell.page(request, "account.html", session, tokens=tokens, about=WORDS[who.role], text="")

    @app.post("/account/password", include_in_schema=False)
    async def change_password(request: Request) -> Response:
        who, session = shell.require(request, May.SELF)
        given = await fields(request, session)
        try:
            if given.get("password") != given.get("again"):
                raise UserError("the two passwords differ")
            await run_in_threadpool(
                shell.accounts.set_password, who.name, given.get("old", ""), given.get("password", "")
            )
        except UserError as error:
            text = ": ".join(part for part in (error.what, error.expected or error.remedy) if part)
            tokens = shell.accounts.tokens(who.name)
            values: dict[str, Any] = {"tokens": tokens, "about": WORDS[who.role], "text": text}
            return shell.page(request, "account.html", session, 400, **values)
        return RedirectResponse("/sign-in", 303)

    @app.post("/account/token", include_in_schema=False)
    async def make_token(request: Request) -> Response:
        who, session = shell.require(request, May.SELF)
        given = await fields(request, session)
        secret = shell.accounts.new_token(
            who.name, given.get("label", "") or "token", timedelta(days=TOKEN_DAYS)
        )
        done = Done(f"A token for programs, for {TOKEN_DAYS} days.", secret)
        return shell.page(request, "shown_once.html", session, done=done, then="/account")

    @app.post("/account/tokens/end", include_in_schema=False)
    async def end_tokens(request: Request) -> Response:
        who, session = shell.require(request, May.SELF)
        await fields(request, session)
        shell.accounts.end_tokens(who.name)
        return RedirectResponse("/account", 303)
