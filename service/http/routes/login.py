"""Logging a browser in and out. Not part of the API: programs send their key with every request."""

import hmac
import re
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from service.app import Service
from service.http.browser_rules import DASHBOARD_PATH
from service.http.limits.clients import GuessLimit
from service.http.routes.dependencies import CurrentService
from service.http.sessions import COOKIE_NAME, SESSION_SECONDS, Sessions

_PAGE = Template(Path(__file__).with_name("login.html").read_text(encoding="utf-8"))
# Of a replica, which has no dashboard.
_REPLICA_HOME = "/docs"
# A login may only lead to pages of this server.
_PAGE_PATH = re.compile(rf"{DASHBOARD_PATH}(/[A-Za-z0-9@._-]+)*/?|/docs|/redoc")
# As browsers write it; a longer one would not fit into the form, which is small.
_QUERY = re.compile(r"[A-Za-z0-9@._~%+=&,:/-]{1,1000}")
_WRONG_KEY = "That is not this server's key. Use the value of GRPO_API_KEY that the server was started with."
_TOO_MANY = "Too many wrong keys from your address. The right one still opens; wait a minute before you guess again."

router = APIRouter(include_in_schema=False)


async def get_guess_limit(request: Request) -> GuessLimit:
    """Return the application's count of wrong keys."""
    limit: GuessLimit = request.app.state.guess_limit
    return limit


@router.get("/login")
async def show_login(request: Request, service: CurrentService) -> Response:
    """Show the login page; redirect if the server has no key."""
    target = _choose_target(request.query_params.get("next", ""), service)
    if service.settings.api_key is None:
        return RedirectResponse(target, 303)
    return _render(target)


@router.post("/login")
async def log_in(
    request: Request, service: CurrentService, limit: Annotated[GuessLimit, Depends(get_guess_limit)]
) -> Response:
    """Set a session cookie if the key is right."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    target = _choose_target(form.get("next", [""])[-1], service)
    api_key = service.settings.api_key
    if api_key is None:
        return RedirectResponse(target, 303)
    key = api_key.get_secret_value().encode()
    if not hmac.compare_digest(form.get("key", [""])[-1].strip().encode(), key):
        wait = limit.count_login(request.scope)
        return _render(target, _WRONG_KEY, 403) if wait is None else _render(target, _TOO_MANY, 429, wait)
    response = RedirectResponse(target, 303)
    token, is_secure = Sessions(key).make_token(), request.url.scheme == "https"
    response.set_cookie(COOKIE_NAME, token, SESSION_SECONDS, secure=is_secure, httponly=True, samesite="strict")
    return response


@router.post("/logout")
async def log_out() -> Response:
    """Delete the session cookie."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE_NAME, httponly=True, samesite="strict")
    return response


def _choose_target(wanted: str, service: Service) -> str:
    page, _, query = wanted.partition("?")
    is_of_dashboard = page.startswith(DASHBOARD_PATH)
    if _PAGE_PATH.fullmatch(page) and not (service.settings.is_replica and is_of_dashboard):
        return wanted if is_of_dashboard and _QUERY.fullmatch(query) else page
    return _REPLICA_HOME if service.settings.is_replica else DASHBOARD_PATH


def _render(target: str, problem: str = "", status_code: int = 200, wait_seconds: int | None = None) -> HTMLResponse:
    alert = f'<p class="problem" id="problem" role="alert">{problem}</p>' if problem else ""
    headers = None if wait_seconds is None else {"Retry-After": str(wait_seconds)}
    return HTMLResponse(_PAGE.substitute(target=escape(target), alert=alert), status_code, headers)
