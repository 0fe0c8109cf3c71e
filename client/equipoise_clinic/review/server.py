"""The worklist over HTTP: plain pages and forms, no script.

A change is made only by a POST that (1) has the host name this server expects, (2) comes from a page of its own
(`Origin`, and `Sec-Fetch-Site` where the browser sends it), (3) belongs to a reviewer's session, and (4) carries that
session's token. Any one missing: 403, and nothing happened.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from equipoise_client.errors import EquipoiseError
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..audit import Verdict
from ..gateway.observe import QuietServer
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
    "gone": "Nothing was changed: the case was judged meanwhile, or its result is another one now. Look again.",
    "wrong": "This token is not known. Too many wrong ones, and none is looked at for a minute.",
}
_VERDICT = re.compile(r"/cases/([0-9a-f]{16})/verdict")
_PICTURE = re.compile(r"/pictures/([0-9a-f]{16})\.png")

_FOLDER = Path(__file__).parent


@contextmanager
def serving(settings: Review, worklist: Worklist, door: Doorkeeper) -> Iterator[QuietServer]:
    """A server that is bound and has yet to be run (`serve_forever`). Raises EquipoiseError where the port is taken."""
    pages = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    template = pages.get_template("page.html.jinja")

    class Handler(_Handler):
        def page(self, session: Session | None, message: str) -> str:
            rows = worklist.rows() if session else []
            failed = worklist.failed() if session else []
            shown = {"rows": rows[:_MOST], "failed": failed[:_MOST], "count": len(rows)}
            return template.render(session=session, message=message, by_proxy=door.by_proxy, **shown)

    Handler.settings, Handler.worklist, Handler.door = settings, worklist, door
    try:
        server = QuietServer((settings.host, settings.port), Handler)
    except OSError as error:
        raise EquipoiseError(f"[review] cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    with server:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        Handler.origin = settings.origin.rstrip("/") or f"http://{host}:{server.server_address[1]}"
        yield server


class _Handler(BaseHTTPRequestHandler):
    settings: Review
    worklist: Worklist
    door: Doorkeeper
    origin: str
    server_version, sys_version = "equipoise", ""
    timeout = 30

    def page(self, session: Session | None, message: str) -> str:
        raise NotImplementedError

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if not self._host_is_ours():
            return self._say(HTTPStatus.MISDIRECTED_REQUEST, "another host name is expected here")
        if url.path == "/style.css":
            return self._send(HTTPStatus.OK, "text/css", (_FOLDER / "style.css").read_bytes())
        session = self._session()
        if session is None and self.door.by_proxy:
            return self._say(HTTPStatus.FORBIDDEN, "no reviewer was named by a trusted proxy")
        if url.path == "/":
            message = _MESSAGES.get(parse_qs(url.query).get("m", [""])[0], "")
            return self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.page(session, message).encode())
        picture = _PICTURE.fullmatch(url.path)
        if picture and session is not None:
            content = self.worklist.picture(picture[1])
            if content is not None:
                return self._send(HTTPStatus.OK, "image/png", content)
        return self._say(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if not self._host_is_ours() or not self._from_here():
            return self._say(HTTPStatus.FORBIDDEN, "refused: this form was not sent from the worklist's own page")
        form = self._form()
        if form is None:
            return self._say(HTTPStatus.BAD_REQUEST, "this is no form of the worklist")
        if path == "/enter" and not self.door.by_proxy:
            entered = self.door.enter(form.get("token", ""))
            if entered is None:
                return self._go("wrong")
            return self._go("", self._cookie(entered[0]))
        session = self._session()
        if session is None or not hmac.compare_digest(form.get("csrf", "").encode(), session.csrf.encode()):
            return self._say(HTTPStatus.FORBIDDEN, "refused: sign in, and use the form of the page")
        if path == "/leave":
            self.door.leave(self._cookie_value())
            return self._go("", self._cookie("", ended=True))
        judged = _VERDICT.fullmatch(path)
        if judged is None or form.get("verdict") not in [each.value for each in Verdict]:
            return self._say(HTTPStatus.BAD_REQUEST, "expected a verdict on a case: accept, correct or reject")
        verdict = Verdict(form["verdict"])
        try:
            done = self.worklist.judge(judged[1], form.get("fingerprint", ""), verdict, session.reviewer)
        except OutOfRoom:
            return self._say(HTTPStatus.INSUFFICIENT_STORAGE, "the disk is full: nothing was changed, try again later")
        return self._go(verdict.value if done else "gone")

    def _host_is_ours(self) -> bool:
        """A foreign name that resolves to this address (DNS rebinding) is not ours."""
        expected = urlsplit(self.origin).netloc
        hosts = self.headers.get_all("Host") or []
        local = f"localhost:{expected.rpartition(':')[2]}"
        return len(hosts) == 1 and (hosts[0] == expected or (not self.settings.origin and hosts[0] == local))

    def _from_here(self) -> bool:
        origins = self.headers.get_all("Origin") or []
        host = self.headers.get("Host", "")
        own = {self.origin} if self.settings.origin else {self.origin, f"http://{host}"}
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        return len(origins) == 1 and origins[0] in own and site == "same-origin"

    def _session(self) -> Session | None:
        return self.door.session(
            str(self.client_address[0]), lambda name: self.headers.get_all(name) or [], self._cookie_value()
        )

    def _cookie_value(self) -> str | None:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            return None
        return found.value if found else None

    def _cookie(self, value: str, ended: bool = False) -> str:
        secure = "; Secure" if self.origin.startswith("https:") else ""
        age = 0 if ended else int(self.settings.session_hours * 3600)
        return f"{_COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={age}{secure}"

    def _form(self) -> dict[str, str] | None:
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get_content_type()
        if kind != "application/x-www-form-urlencoded" or not length.isdigit() or int(length) > _LONGEST:
            return None
        try:
            fields = parse_qs(self.rfile.read(int(length)).decode(), max_num_fields=10)
        except ValueError:
            return None
        return {name: values[0] for name, values in fields.items() if len(values) == 1}

    def _go(self, message: str, cookie: str | None = None) -> None:
        headers = {"Location": f"{self.origin}/?m={message}" if message else f"{self.origin}/"}
        if not self.settings.origin:
            headers["Location"] = f"/?m={message}" if message else "/"
        self._send(HTTPStatus.SEE_OTHER, "text/plain", b"", {**headers, **({"Set-Cookie": cookie} if cookie else {})})

    def _say(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # a body may be left unread
        self._send(status, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Verdicts are in the audit log; who looked at what page is not recorded here."""
