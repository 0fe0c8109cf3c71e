"""Health as a load balancer asks for it: 200 only while health probes are answered.

    GET /healthz          of all public models that are served
    GET /healthz/NAME     of one; 503 where it is not served because it failed

The body is one line of JSON with the reason, from a snapshot that the supervisor replaces a few times a second. An old
snapshot counts as unhealthy: the supervisor does not monitor the server any more.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

from ..errors import PortTakenError
from ..ports import LOOPBACK, reached_at

USUAL_PORT = 8003
PATH = "/healthz"
STALE = 5.0
"""Seconds after which a snapshot counts as unhealthy."""

SNAPSHOT_WAIT = 0.5
"""Seconds to wait for a new snapshot where the last is old: after a stall of the machine all threads wake at once."""

_AT_ONCE = 64  # connections; more are closed unanswered
_PATIENCE = 2.0  # seconds for a caller to send its request
Request = socket.socket | tuple[bytes, socket.socket]


class State(str, Enum):
    """What `equipoise serve` is doing."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    RESTARTING = "restarting"


@dataclass(frozen=True)
class ModelHealth:
    """Of one public model.

    Attributes:
        answered: seconds since its last correct answer to a health probe.
        reason: what is wrong; empty where it is fine.
    """

    fine: bool
    answered: float
    reason: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What is known at `at` (monotonic clock).

    Attributes:
        generation: how often a repository was taken into service: 1 after the start, one more after every reload.
        restarts: how often Triton was restarted because it did not serve.
        fell_back: why the last reload was not carried out; empty where it was.
        left_out: models that are not served, so that the others are, and why: they failed.
        closed: models that accept nothing after an alarm, and why; they answer, with review.
    """

    state: State
    reason: str = ""
    models: Mapping[str, ModelHealth] = field(default_factory=lambda: MappingProxyType({}))
    generation: int = 0
    restarts: int = 0
    fell_back: str = ""
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    at: float = field(default_factory=time.monotonic)
    closed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def status(self, model: str = "", now: float | None = None) -> tuple[bool, str]:
        """Whether requests may be sent, for one model or for all that are served, and one line that says why not, or
        which model is not served."""
        if self.state is not State.SERVING:
            return False, f"{self.state.value}: {self.reason}" if self.reason else self.state.value
        if (age := (time.monotonic() if now is None else now) - self.at) > STALE:
            return False, f"the supervisor has not checked for {age:.0f} s"
        left_out = [f"{name} is not served: {why}" for name, why in self.left_out.items() if model in ("", name)]
        if model in self.left_out:
            return False, left_out[0]
        chosen = {model: self.models[model]} if model else self.models
        wrong = [f"{name}: {each.reason}" for name, each in chosen.items() if not each.fine]
        return not wrong, "; ".join([*wrong, *left_out])

    def document(self, model: str = "") -> tuple[bool, str]:
        """The same with the details, as one line of JSON."""
        healthy, reason = self.status(model)
        shown = {name: asdict(each) for name, each in self.models.items() if not model or name == model}
        document = {
            "healthy": healthy,
            "state": self.state.value,
            "reason": reason,
            "generation": self.generation,
            "restarts": self.restarts,
            "fell_back": self.fell_back,
            "left_out": dict(self.left_out),
            "closed": dict(self.closed),
            "models": shown,
        }
        return healthy, json.dumps(document)


class HealthServer:
    """Context manager around the endpoint; set `snapshot` to change its answer.

    Args:
        port: 0 picks a free one. Raises PortTakenError.
    """

    def __init__(self, port: int = USUAL_PORT, address: str = LOOPBACK) -> None:
        self.snapshot = Snapshot(State.STARTING)
        try:
            self._server = _Server((address, port), self)
        except OSError as error:
            raise PortTakenError(
                f"port {port} (health) on {address} cannot be bound: {error.strerror}. Stop what listens there, or "
                "choose another with --health-port (0 picks a free one)"
            ) from error
        self.url = f"http://{reached_at(address)}:{self._server.server_port}{PATH}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def current_snapshot(self) -> Snapshot:
        """The snapshot; an old one only where no new one arrives in time."""
        ends = time.monotonic() + SNAPSHOT_WAIT
        while (found := self.snapshot).state is State.SERVING and found.at + STALE < time.monotonic() < ends:
            time.sleep(0.02)
        return found

    def __enter__(self) -> HealthServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], health: HealthServer) -> None:
        self.health = health
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Request, client_address: object) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Request, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that went away is not an error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE
    server_version, sys_version = "equipoise", ""

    def do_GET(self) -> None:
        snapshot = self.server.health.current_snapshot()
        path, _, model = self.path.removeprefix("/").partition("/")
        if f"/{path}" != PATH or (
            model and model not in {*snapshot.models, *snapshot.left_out} and snapshot.state is State.SERVING
        ):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        healthy, line = snapshot.document(model)
        body = (line + "\n").encode()
        self.send_response(HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 (the base class's name)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: this is called several times a second."""
