"""Everything the client raises, and the one place where other libraries' errors become ours.

EquipoiseError
├── InvalidInput            what you gave cannot be used; the message says what is expected (also a ValueError)
│   ├── UnreadableImage     a file is not the image it should be
│   └── StudyRejected       a DICOM study cannot be used, at any time; `images.rejections` has one for each reason
├── UnknownModel            no such model, or one that was not published by Equipoise
├── NotPermitted            the server, or a proxy before it, does not let this caller in
├── ServerUnavailable       not reachable, queue full, or timed out in the queue: trying again later is safe
├── DeadlineExceeded        no answer within the time that was given (also a TimeoutError)
├── Cancelled               the call was cancelled before the answer came
├── ServerFailure           the server failed on a request that seems valid
│   ├── BadAnswer           it answered, but not what the contract promises
│   └── ModelDied           a process of the model died, by this request or an earlier one
└── MissingExtra            an optional part of Equipoise is not installed (also an ImportError)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import grpc
from tritonclient.utils import InferenceServerException


class EquipoiseError(Exception):
    """Root of all errors raised by `equipoise_client`."""


class InvalidInput(EquipoiseError, ValueError):
    """What was given cannot be used."""


class UnreadableImage(InvalidInput):
    """A file is not the image it should be."""


class StudyRejected(InvalidInput):
    """A DICOM study cannot be used, and trying again changes nothing.

    Attributes:
        reason: one stable text per class, for logs and worklists; no patient data. The message adds sizes and
            distances.
    """

    reason = "the study cannot be used"

    def __init__(self, details: str = "") -> None:
        super().__init__(f"{self.reason}: {details}" if details else self.reason)


class UnknownModel(EquipoiseError):
    """No such model, or one that was not published by Equipoise."""


class NotPermitted(EquipoiseError):
    """The server, or a proxy before it, does not let this caller in."""


class ServerUnavailable(EquipoiseError):
    """Not reachable, queue full, or timed out in the queue: trying again later is safe.

    Attributes:
        busy: the server was reached and had no room in its queue.
        failed: the model was reached, and could not draw a single sample; this request may be the cause.
        lost: the connection was lost during the request: a model may have started on it, and died because of it.
        retry_after: seconds after which it asks to be asked again; 0 where it did not say.
    """

    busy = False
    failed = False
    lost = False
    retry_after = 0.0


class DeadlineExceeded(EquipoiseError, TimeoutError):
    """No answer within the time that was given."""


class Cancelled(EquipoiseError):
    """The call was cancelled before the answer came."""


class ServerFailure(EquipoiseError):
    """The server failed on a request that seems valid."""


class BadAnswer(ServerFailure):
    """The server answered, but not what the contract promises."""


class ModelDied(ServerFailure):
    """A process of the model died, or the connection was lost; this request may be the cause, or an earlier one."""


class MissingExtra(EquipoiseError, ImportError):
    """An optional part of Equipoise is not installed."""


_BY_CODE: Mapping[str, tuple[type[EquipoiseError], str]] = MappingProxyType(
    {
        "INVALID_ARGUMENT": (InvalidInput, "the server refused the request"),
        "OUT_OF_RANGE": (InvalidInput, "the server refused the request"),
        "RESOURCE_EXHAUSTED": (InvalidInput, "the message is too large; ask for fewer outputs or send a smaller image"),
        "NOT_FOUND": (UnknownModel, "the server does not serve this model; check the name and what is published"),
        "PERMISSION_DENIED": (NotPermitted, "access denied; check the client certificate and the proxy's allow-list"),
        "UNAUTHENTICATED": (NotPermitted, "access denied; check the client certificate or credentials"),
        "UNAVAILABLE": (ServerUnavailable, "the server is not reachable or too busy; check the address or try later"),
        "DEADLINE_EXCEEDED": (DeadlineExceeded, "no answer in time; give more time, fewer samples or a smaller image"),
        "CANCELLED": (Cancelled, "the call was cancelled"),
        "UNIMPLEMENTED": (ServerFailure, "the server does not know this call; is it a Triton gRPC port?"),
    }
)


_FULL = "Exceeds maximum queue size"  # Triton's words
_DEAD = ("Stub process", "is not healthy")  # Triton's words; of a dead sampler the model says them as UNAVAILABLE
_TOO_LARGE = "status: 413"  # of a proxy, as gRPC words it
_UNLOADED = "has no available versions"  # Triton's words; of an unknown model it says "is not found"
_FAILED = "the sampler failed"  # our aggregator's words
_NOT_LOST = (
    _FULL, _UNLOADED, "failed to connect", "connection refused", "resolution failed", "server is stopping",
    "server not ready", "status: 429", "status: 503", "timeout expired", _FAILED, "the request's timeout",
)  # fmt: skip
"""Words of queue, gRPC and a proxy for a request that nobody has begun to work on, and of a model that answers."""


@contextmanager
def translated(about: str) -> Iterator[None]:
    """Raises what Triton's client and gRPC raise as one of ours, `from` the original.

    Args:
        about: what was being done, first words of the message: `"hippocampus at localhost:8001"`.
    """
    try:
        yield
    except InferenceServerException as error:
        raise _mapped(about, error.status() or "", error.message() or "") from error
    except grpc.RpcError as error:  # grpc.aio raises these past tritonclient in places
        raise ours(about, error) from error


def ours(about: str, error: grpc.RpcError) -> EquipoiseError:
    """What gRPC raised, as one of ours."""
    return _mapped(about, str(error.code() if hasattr(error, "code") else None), str(error))


def _mapped(about: str, status: str, details: str) -> EquipoiseError:
    code = status.removeprefix("StatusCode.")
    if code == "NOT_FOUND" and _UNLOADED in details:
        code = "UNAVAILABLE"  # a known model that is being loaded or, while the server stops, unloaded
    if code == "UNKNOWN" and _TOO_LARGE in details:
        code = "RESOURCE_EXHAUSTED"
    kind, advice = _BY_CODE.get(code, (ServerFailure, "the server failed; its log says why"))
    if all(word in details for word in _DEAD):
        kind, advice = ModelDied, "a process of the model died, and the server is restarted; its log says which"
    mapped = kind(f"{about}: {advice} ({code or 'no status'}: {details.strip() or 'no details'})")
    if isinstance(mapped, ServerUnavailable):
        mapped.busy = _FULL.lower() in details.lower()
        said = [words for words in _NOT_LOST if words.lower() in details.lower()]
        mapped.failed = said == [_FAILED]  # and not because its queue is full, or it is being loaded
        mapped.lost = not said
    return mapped
