"""Who the reviewer is: named by an authenticating proxy, or known by a token that one person was given.

A typed name proves nothing. A local token is made for one name, and only its digest is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time

import msgspec
from equipoise_client.errors import InvalidInput

from ..gateway.settings import Review
from ..ownership import give_to_owner

_NAME = re.compile(r"[\w.@ -]{1,64}")


@dataclass(frozen=True)
class Session:
    """One reviewer's session. `csrf`: the token that every form has to send back."""

    reviewer: str
    csrf: str
    ends: float = float("inf")


class Reviewers:
    """Names and digests of tokens, in a JSON file that only its owner reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, name: str) -> str:
        """A new token for `name`, which replaces the old one. Raises InvalidInput for a name that is not allowed."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{name!r}: expected up to 64 letters, digits, or any of . @ - _ and blanks")
        token = secrets.token_urlsafe(24)
        known = {**self._read(), name: _digest(token)}
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            give_to_owner(handle, self._path.parent)
            json.dump(known, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        return token

    def named(self, token: str) -> str | None:
        """The name that the token was made for; None: unknown."""
        given, found = _digest(token.strip()), None
        for name, digest in self._read().items():
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def _read(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            raise InvalidInput(f"{self._path}: the list of reviewers cannot be read") from None


class Doorkeeper:
    """Decides which reviewer a request comes from."""

    TRIES, MINUTE = 10, 60.0  # wrong tokens within so many seconds; then all are refused

    def __init__(self, settings: Review, reviewers: Reviewers) -> None:
        self._settings, self._reviewers = settings, reviewers
        self.by_proxy = bool(settings.proxy_header)
        self._secret = secrets.token_bytes(32)  # signs the forms' tokens; lives as long as the process
        self._sessions: dict[str, Session] = {}
        self._wrong: list[float] = []
        self._lock = threading.Lock()
        self._trusted = [ipaddress.ip_network(each) for each in settings.trusted_proxies]

    def session(self, peer: str, header: Callable[[str], Sequence[str]], cookie: str | None) -> Session | None:
        """The session that a request belongs to; None: no known reviewer.

        Args:
            peer: the address that the connection comes from.
            header: all values of a request header.
        """
        if not self.by_proxy:
            with self._lock:
                found = self._sessions.get(cookie or "")
            return found if found is not None and found.ends > time() else None
        names = header(self._settings.proxy_header)
        address = ipaddress.ip_address(peer.split("%")[0])
        trusted = any(address in network for network in self._trusted)
        if not trusted or len(names) != 1 or not _NAME.fullmatch(names[0]):
            return None  # two names: the browser sent one of them
        return Session(names[0], hmac.new(self._secret, names[0].encode(), hashlib.sha256).hexdigest())

    def enter(self, token: str) -> tuple[str, Session] | None:
        """A cookie and a session for a reviewer's token; None for a wrong one, or after too many wrong ones."""
        now = time()
        with self._lock:
            self._wrong = [at for at in self._wrong if at > now - self.MINUTE]
            if len(self._wrong) >= self.TRIES:
                return None
        name = self._reviewers.named(token)
        with self._lock:
            if name is None:
                self._wrong.append(now)
                return None
            self._sessions = {key: each for key, each in self._sessions.items() if each.ends > now}
            cookie = secrets.token_urlsafe(24)
            session = Session(name, secrets.token_urlsafe(24), now + self._settings.session_hours * 3600.0)
            self._sessions[cookie] = session
        return cookie, session

    def leave(self, cookie: str | None) -> None:
        with self._lock:
            self._sessions.pop(cookie or "", None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
