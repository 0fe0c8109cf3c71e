"""The wire: how a connection is made, what one step on it is, and when a step is taken again.

What a client does is written once, as generators that yield steps (`Call`, `Pause`) and get the results back; `drive`
and `drive_async` carry the steps out, blocking or on an event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import grpc
import tritonclient.grpc
import tritonclient.grpc.aio

from .backoff import Backoff
from .errors import DeadlineExceeded, EquipoiseError, InvalidInput, ModelDied, ServerUnavailable, translated

T = TypeVar("T")

MESSAGE_LIMIT = 2**31 - 1
"""Bytes; gRPC's own ceiling for one message."""


@dataclass(frozen=True)
class Tls:
    """Encrypts the connection: `Tls()` trusts the system's authorities, `Tls("ca.pem")` one of your own.

    `Tls("ca.pem", certificate="me.pem", key="me.key")` also proves who the client is (mutual TLS). All PEM files.
    """

    root: str | PathLike[str] | None = None
    certificate: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("a client certificate and its key go together; give Tls both `certificate` and `key`")
        for role, path in (("root", self.root), ("certificate", self.certificate), ("key", self.key)):
            if path is not None and not Path(path).is_file():
                raise InvalidInput(f"Tls {role}: there is no file {Path(path)}; expected a PEM file")

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel that is not tritonclient's."""
        pem = [None if path is None else Path(path).read_bytes() for path in (self.root, self.key, self.certificate)]
        return grpc.ssl_channel_credentials(*pem)


@dataclass(frozen=True)
class Retry:
    """Tries again when the server is unreachable or busy: `Retry(attempts=1)` never does.

    Safe, because an answer depends on the image and the seed alone. Nothing else is repeated, and never past the
    deadline; but for a request whose model died, or which was lost under way, which is sent once more and no more than
    that, since it may be what kills. One call sends a request at most `attempts` times. The pause before try n+1 is
    drawn between half and all of min(longest, first · 2ⁿ⁻¹) seconds, so that clients which failed together don't come
    back together. The one more time after a death comes `recovery` seconds later still, or half of the time that is
    left if that is less: sent at once, it would meet the same dying server again. `equipoise serve` says within 1.5 s
    that it does not serve, and a reverse proxy asks it twice a second.
    """

    attempts: int = 5
    first: float = 0.1
    longest: float = 2.0
    recovery: float = 3.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0.0 < self.first <= self.longest or not self.recovery >= 0.0:
            raise InvalidInput(
                f"Retry needs attempts >= 1, 0 < first <= longest and recovery >= 0 in seconds; got {self}"
            )

    def pauses(self, source: random.Random) -> Iterator[float]:
        """Seconds to wait before the second, third, … try."""
        backoff = Backoff(self.first, self.longest, jitter=0.5)
        for failed in range(self.attempts - 1):
            yield backoff.pause(failed, source)


@dataclass
class Tries:
    """Whether a request that failed is sent again, and when; `Tries()`: never.

    Args:
        pauses: seconds before the second, third, … try.
        recovery: seconds to wait beyond that for a server whose model died; see `Retry`.
    """

    pauses: Iterator[float] = field(default_factory=lambda: iter(()))
    recovery: float = 0.0
    suspect: ModelDied | ServerUnavailable | None = None
    """Why it may be this request that kills, where it may."""

    def pause(self, error: EquipoiseError, left: float) -> float | None:
        """Seconds to wait; None: it is not sent again.

        Args:
            left: seconds until the deadline.
        """
        if isinstance(error, ModelDied) or (isinstance(error, ServerUnavailable) and error.lost):
            again = self.suspect is None
            if again or isinstance(error, ModelDied):  # whose words say more
                self.suspect = error
            pause = next(self.pauses, None) if again else None
            return None if pause is None else pause + max(0.0, min(self.recovery, left / 2.0))
        return next(self.pauses, None) if isinstance(error, ServerUnavailable) else None


@dataclass(frozen=True)
class Deadline:
    """A point in time, in seconds of the monotonic clock, that all tries of one call share."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        if not 0.0 < seconds < float("inf"):
            raise InvalidInput(f"timeout is a number of seconds above 0; got {seconds}")
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        return self.at - time.monotonic()


@dataclass(frozen=True)
class Call:
    """One call of tritonclient, by the name its blocking and its asyncio client share."""

    method: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


Operation = Generator[Call | Pause, Any, T]


def repeated(
    about: str,
    method: str,
    arguments: Callable[[float], Mapping[str, Any]],
    deadline: Deadline,
    tries: Tries,
    retry_after: float = 0.0,
) -> Operation[Any]:
    """Calls until it works, the failure is final, the pauses are used up, or the deadline is near.

    A request whose model died, or which was lost under way, and which was lost again or then found nobody there, fails
    with ModelDied and not as if nobody had been there: whoever keeps asking while a server is away must not keep
    sending what may kill it. Lost once, and not tried again, it is ServerUnavailable.

    Args:
        arguments: seconds left until the deadline → the call's arguments.
        retry_after: seconds that the server asks refused callers to wait at least.
    """
    while True:
        left = deadline.left()
        if left <= 0.0:
            raise DeadlineExceeded(f"{about}: no time left to ask; give a longer timeout")
        try:
            with translated(about):
                return (yield Call(method, {**arguments(left), "client_timeout": left}))
        except (ServerUnavailable, ModelDied) as error:
            if isinstance(error, ServerUnavailable):
                error.lost = error.lost and method == "infer"  # the other methods run no model
            pause = tries.pause(error, deadline.left())
            asked = retry_after if isinstance(error, ServerUnavailable) and error.busy else 0.0
            wait = (pause or 0.0) + asked
            if pause is None or wait >= deadline.left():
                final = _final(error, tries.suspect, asked)
                raise final from (error.__cause__ if final is error else error)
        yield Pause(wait)


def _final(
    error: ServerUnavailable | ModelDied, suspect: ServerUnavailable | ModelDied | None, retry_after: float
) -> EquipoiseError:
    """What the caller gets in the end."""
    if isinstance(error, ServerUnavailable):
        error.retry_after = retry_after
    if suspect is None or suspect is error:
        return error
    if isinstance(suspect, ModelDied):
        return suspect
    return ModelDied(f"{suspect}; a model may have died of it: it is not sent again")


def drive(connection: Any, operation: Operation[T]) -> T:
    """Carries the steps out on a blocking connection."""

    def perform(step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        return getattr(connection, step.method)(**step.arguments)

    try:
        step = next(operation)
        while True:
            try:
                outcome = perform(step)
            except Exception as error:  # noqa: BLE001 (not swallowed: the operation decides what it means)
                step = operation.throw(error)
            else:
                step = operation.send(outcome)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def drive_async(connection: Any, operation: Operation[T]) -> T:
    """Carries the steps out on an asyncio connection. Cancelling the task cancels the call on the wire."""

    async def perform(step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        return await getattr(connection, step.method)(**step.arguments)

    try:
        step = next(operation)
        while True:
            try:
                outcome = await perform(step)
            except Exception as error:  # noqa: BLE001 (not swallowed: the operation decides what it means)
                step = operation.throw(error)
            else:
                step = operation.send(outcome)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def connect(url: str, tls: Tls | None) -> tritonclient.grpc.InferenceServerClient:
    """A blocking connection, opened on first use."""
    return tritonclient.grpc.InferenceServerClient(**_connection(url, tls))


def connect_async(url: str, tls: Tls | None) -> tritonclient.grpc.aio.InferenceServerClient:
    """A connection for the running event loop."""
    return tritonclient.grpc.aio.InferenceServerClient(**_connection(url, tls))


def check_url(url: str) -> str:
    """`host:port`, or InvalidInput."""
    host, _, port = url.rpartition(":")
    if "/" in url or not host or not port.isdigit():
        raise InvalidInput(f"the server's address is host:port without a scheme, as in localhost:8001; got {url!r}")
    return url


def _connection(url: str, tls: Tls | None) -> dict[str, Any]:
    files = tls or Tls()
    return {
        "url": url,
        "ssl": tls is not None,
        "root_certificates": files.root,
        "certificate_chain": files.certificate,
        "private_key": files.key,
        # tritonclient sets neither its message limits nor its keepalive once it is given channel_args: all are here.
        "channel_args": channel_options(),
    }


def channel_options() -> list[tuple[str, int]]:
    """Of every gRPC channel to a server."""
    return [
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        # A dead peer behind a firewall is noticed after 30 + 10 s of a long call instead of at its deadline.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 2),
        # gRPC answers UNAVAILABLE from memory until it tries to connect again, by default 1 s to 2 min later: a
        # restarted server has to be found by the next try, not after it.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Against its name gRPC's time limit for one connection, handshake included: mutual TLS with a busy machine took
        # more than 100 ms.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # One client, one connection of its own.
        ("grpc.use_local_subchannel_pool", 1),
        # Images go to the server that was named, never through whatever http_proxy is in the environment.
        ("grpc.enable_http_proxy", 0),
    ]
