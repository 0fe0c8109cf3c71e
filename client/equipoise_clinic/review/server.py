"""The worklist over HTTP: plain pages and forms, no script.

A change is made only by a POST that (1) has the host name this server expects, (2) comes from a page of its own
(`Origin`, and `Sec-Fetch-Site` where the browser sends it), (3) belongs to a reviewer's session, and (4) carries that
session's token. Any one missing: 403, and nothing happened.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import http_server
from ..audit import Verdict
from ..gateway.observe import Log
from ..gateway.settings import Review
from ..gateway.spool import OutOfRoom
from .identity import Doorkeeper, Session
from .worklist import Worklist

_COOKIE = "equipoise_session"
_LONGEST = 4096  # bytes of a form
_MOST = 100  # cases on the page; the next ones come up when these are judged
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MESSAGES = {
    "accept": "Accepted.",
    "correct": "Noted as needing correction; nothing more of this result is sent.",
    "reject": "Rejected; nothing more of this result is sent.",
    "gone": "Nothing was changed: the case was judged meanwhile, or it has another result now. Check it again.",
    "wrong": "This token is not known. After too many wrong tokens, all tokens are refused for a minute.",
}

_FOLDER = Path(__file__).parent

Form = Mapping[str, str]


def address(listening: socket.socket) -> str:
    """`http://host:port` of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(settings: Review, worklist: Worklist, door: Doorkeeper, listening: socket.socket) -> uvicorn.Server:
    """To be run on the socket; `should_exit = True` ends it after the requests in progress."""
    page = Page(settings, worklist, door, settings.origin.rstrip("/") or address(listening))
    return http_server.http_server(page.application())


class Page:
    """The worklist page.

    Args:
        origin: scheme and host as browsers see them.
    """

    def __init__(self, settings: Review, worklist: Worklist, door: Doorkeeper, origin: str) -> None:
        self._settings, self._worklist, self._door, self._origin = settings, worklist, door, origin
        pages = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
        self._template = pages.get_template("page.html.jinja")

    def application(self) -> ASGIApp:
        """The routes, with the protecting headers on every answer."""
        application = Starlette(
            routes=[
                Route("/", self._known(self._show)),
                Route("/style.css", lambda _: FileResponse(_FOLDER / "style.css")),
                Route("/pictures/{case}.png", self._known(self._picture)),
                Route("/enter", self._posted(self._enter), methods=["POST"]),
                Route("/leave", self._posted(self._signed(self._leave)), methods=["POST"]),
                Route("/cases/{case}/verdict", self._posted(self._signed(self._judge)), methods=["POST"]),
            ],
            exception_handlers={Exception: _failed},
        )

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def protected(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(_HEADERS)
                await send(message)

            answer: ASGIApp = application
            if not self._host_is_ours(Request(scope)):
                status = HTTPStatus.FORBIDDEN if scope["method"] == "POST" else HTTPStatus.MISDIRECTED_REQUEST
                answer = PlainTextResponse("another host name is expected here\n", status)
            await answer(scope, receive, protected)

        return guarded

    def _known(self, show: Callable[[Request, Session | None], Response]) -> Callable[[Request], Response]:
        """A page for a reviewer, or for somebody who may sign in here."""

        def endpoint(request: Request) -> Response:
            session = self._session(request)
            if session is None and self._door.by_proxy:
                raise HTTPException(HTTPStatus.FORBIDDEN, "no trusted proxy has named a reviewer")
            return show(request, session)

        return endpoint

    def _posted(self, act: Callable[[Request, Form], Response]) -> Callable[[Request], object]:
        """An action of a form that was sent from the page itself."""

        async def endpoint(request: Request) -> Response:
            if not self._from_here(request):
                raise HTTPException(HTTPStatus.FORBIDDEN, "refused: this form was not sent from the worklist's page")
            form = await _form(request)
            if form is None:
                raise HTTPException(HTTPStatus.BAD_REQUEST, "this is no form of the worklist")
            return await run_in_threadpool(act, request, form)

        return endpoint

    def _signed(self, act: Callable[[Request, Form, Session], Response]) -> Callable[[Request, Form], Response]:
        """An action of a reviewer, whose form carries the session's token."""

        def signed(request: Request, form: Form) -> Response:
            session = self._session(request)
            if session is None or not hmac.compare_digest(form.get("csrf", "").encode(), session.csrf.encode()):
                raise HTTPException(HTTPStatus.FORBIDDEN, "refused: sign in, and use the form of the page")
            return act(request, form, session)

        return signed

    def _show(self, request: Request, session: Session | None) -> Response:
        rows = self._worklist.rows() if session else []
        failed = self._worklist.failed() if session else []
        return HTMLResponse(
            self._template.render(
                session=session,
                message=_MESSAGES.get(request.query_params.get("m", ""), ""),
                by_proxy=self._door.by_proxy,
                rows=rows[:_MOST],
                failed=failed[:_MOST],
                refused=self._worklist.refused_kinds() if session else [],
                count=len(rows),
            )
        )

    def _picture(self, request: Request, session: Session | None) -> Response:
        content = self._worklist.picture(request.path_params["case"]) if session else None
        if content is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(content, media_type="image/png")

    def _enter(self, request: Request, form: Form) -> Response:
        if self._door.by_proxy:
            raise HTTPException(HTTPStatus.FORBIDDEN, "refused: the proxy names the reviewer")
        entered = self._door.enter(form.get("token", ""))
        if entered is None:
            return self._go("wrong")
        return self._with_cookie(self._go(), entered[0], int(self._settings.session_hours * 3600))

    def _leave(self, request: Request, form: Form, session: Session) -> Response:
        self._door.leave(request.cookies.get(_COOKIE))
        return self._with_cookie(self._go(), "", 0)

    def _judge(self, request: Request, form: Form, session: Session) -> Response:
        try:
            verdict = Verdict(form.get("verdict"))
        except ValueError:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "expected a verdict: accept, correct or reject") from None
        try:
            done = self._worklist.judge(
                request.path_params["case"], form.get("fingerprint", ""), verdict, session.reviewer
            )
        except OutOfRoom:
            raise HTTPException(
                HTTPStatus.INSUFFICIENT_STORAGE, "the disk is full: nothing was changed, try again later"
            ) from None
        return self._go(verdict.value if done else "gone")

    def _host_is_ours(self, request: Request) -> bool:
        """A foreign name that resolves to this address (DNS rebinding) is not ours."""
        expected = urlsplit(self._origin).netloc
        hosts = request.headers.getlist("host")
        local = f"localhost:{expected.rpartition(':')[2]}"
        return hosts == [expected] or (not self._settings.origin and hosts == [local])

    def _from_here(self, request: Request) -> bool:
        own = {self._origin} if self._settings.origin else {self._origin, f"http://{request.headers['host']}"}
        origins = request.headers.getlist("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        return len(origins) == 1 and origins[0] in own and site == "same-origin"

    def _session(self, request: Request) -> Session | None:
        assert request.client is not None
        return self._door.session(request.client.host, request.headers.getlist, request.cookies.get(_COOKIE))

    def _go(self, message: str = "") -> Response:
        place = f"{self._origin if self._settings.origin else ''}/{f'?m={message}' if message else ''}"
        return RedirectResponse(place, HTTPStatus.SEE_OTHER)

    def _with_cookie(self, response: Response, value: str, seconds: int) -> Response:
        secure = self._origin.startswith("https:")
        response.set_cookie(_COOKIE, value, seconds, secure=secure, httponly=True, samesite="strict")
        return response


async def _form(request: Request) -> Form | None:
    """The fields that are there once; None: not a form, too long, or not sent in time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return None
    try:
        body = await asyncio.wait_for(_body(request), http_server.PATIENCE)
        fields = parse_qs(body.decode(), max_num_fields=10)
    except (ValueError, ClientDisconnect, asyncio.TimeoutError):
        return None
    return {name: values[0] for name, values in fields.items() if len(values) == 1}


async def _body(request: Request) -> bytes:
    """Raises ValueError as soon as it is longer than a form may be."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST:
            raise ValueError
    return body


def _failed(request: Request, error: Exception) -> Response:
    """An error of ours: where it happened is logged, never its message, which may quote a patient's data."""
    Log().failure("the review page failed", error)
    text = "the worklist failed: load the page again to see what was changed\n"
    return PlainTextResponse(text, HTTPStatus.INTERNAL_SERVER_ERROR)
