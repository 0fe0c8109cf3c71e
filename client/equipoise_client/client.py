"""`UncertaintyClient` and its asyncio twin: both carry out the operations of `_Dialogue`."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from equipoise_core.contract import Contract
from numpy.typing import ArrayLike, NDArray

from .errors import DeadlineExceeded, InvalidInput, ServerUnavailable, UnknownModel
from .prediction import Prediction, Priority
from .transport import (
    Deadline,
    Operation,
    Pause,
    Retry,
    Tls,
    Tries,
    check_url,
    connect,
    connect_async,
    drive,
    drive_async,
    repeated,
)
from .wire import MAPS, Request, arguments_of, build_request, contract_of, decided_by, read_answer, retry_after_of

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_TIMEOUT = 60.0
"""Seconds for one call, all its tries included."""

DEFAULT_RETRY = Retry()

REPLACED = "the model was replaced since the image was prepared for it"
_TURNS = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Seconds before each request for the contract of a model that has just been replaced."""


class _Dialogue:
    """The operations of a client, whether blocking or asynchronous."""

    def __init__(self, url: str, timeout: float, retry: Retry, headers: Mapping[str, str] | None) -> None:
        self._url = check_url(url)
        self._timeout = timeout
        self._retry = retry
        self._headers = dict(headers or {})
        self._contracts: dict[str, Contract] = {}
        self._retry_after: dict[str, float] = {}  # seconds, by model
        self._jitter = random.Random()  # noqa: S311 (spreads retries, guards nothing)

    def predict(
        self,
        name: str,
        image: ArrayLike,
        *,
        samples: int | None = None,
        seed: int | None = None,
        spacing: ArrayLike | None = None,
        group: str | None = None,
        outputs: Sequence[str] = MAPS,
        priority: Priority | int | None = None,
        timeout: float | None = None,
    ) -> Operation[Prediction]:
        """The answer for one image.

        Args:
            name: the public model.
            image: `[C, *S]` (or `[1, C, *S]`), finite real numbers in the source's own intensities.
            samples, seed: for study and replay; the answer is then at most `review`. Default: the policy's own.
            spacing: mm per spatial axis; without it there are no volumes, and segmentations go to review.
            group: of cases that the image is of, such as its scanner, for a policy certified by group: without it
                such a policy accepts nothing.
            outputs: the arrays to send back; `()` asks for the decision alone and is cheapest.
            priority: `Priority.URGENT` overtakes what waits in the queue.
            timeout: seconds, instead of the client's.

        Raises:
            InvalidInput: the image or an option does not fit the contract; nothing was decided.
            UnknownModel, NotPermitted: of the server.
            ServerUnavailable, DeadlineExceeded: trying again later is safe.
            ServerFailure: the server failed, or its answer breaks the contract (BadAnswer).
        """
        deadline = self._deadline(timeout)
        contract = yield from self._contract(name, deadline)
        seeds = None if seed is None else (seed,)
        images = _one(image, contract.rank)
        request = build_request(contract, images, samples, seeds, spacing, outputs, priority, group)
        return (yield from self._answers(contract, request, deadline))[0]

    def predict_batch(
        self,
        name: str,
        images: Sequence[ArrayLike] | NDArray[Any],
        *,
        samples: int | None = None,
        seeds: Sequence[int] | None = None,
        spacing: ArrayLike | None = None,
        group: str | None = None,
        outputs: Sequence[str] = MAPS,
        priority: Priority | int | None = None,
        timeout: float | None = None,
    ) -> Operation[tuple[Prediction, ...]]:
        """The answers for N images of one size `[N, C, *S]`, in one request; each has its own decision.

        They are sampled together, which is faster than one by one, most of all for small networks.

        Arguments and errors are those of `predict`, but for `seeds`, one per image, and `spacing`, mm, `[rank]` for all
        images or `[N, rank]`; `group` is that of all images.
        """
        deadline = self._deadline(timeout)
        contract = yield from self._contract(name, deadline)
        request = build_request(contract, images, samples, seeds, spacing, outputs, priority, group)
        return (yield from self._answers(contract, request, deadline))

    def contract(self, name: str, *, timeout: float | None = None) -> Operation[Contract]:
        """The model's contract: sizes, classes, units, digest. Cached until an answer shows that the model changed.

        Raises as `predict` does.
        """
        return (yield from self._contract(name, self._deadline(timeout)))

    def models(self, *, timeout: float | None = None) -> Operation[tuple[str, ...]]:
        """Names of the public models that the server serves now. Raises as `predict` does."""
        deadline, call = self._deadline(timeout), {"headers": self._headers or None}
        # Statistics are of all loaded models; the index of the repository is closed to clients (deploy/SECURITY.md).
        found = yield from repeated(self._url, "get_inference_statistics", lambda _: call, deadline, Tries())
        public = []
        for name in sorted({str(entry.name) for entry in found.model_stats}):
            try:
                yield from self._contract(name, deadline)
                public.append(name)
            except UnknownModel:
                continue  # a sampler, or another's
        return tuple(public)

    def ready(self, name: str, *, timeout: float | None = None) -> Operation[bool]:
        """Whether the server serves this model now; False where it cannot be reached in time. Raises NotPermitted."""
        call = {"model_name": name, "headers": self._headers or None}
        try:
            answer = yield from repeated(
                self._about(name), "is_model_ready", lambda _: call, self._deadline(timeout), Tries()
            )
        except (ServerUnavailable, UnknownModel, DeadlineExceeded):
            return False
        return bool(answer)

    def _answers(self, contract: Contract, request: Request, deadline: Deadline) -> Operation[tuple[Prediction, ...]]:
        arguments = functools.partial(arguments_of, contract, request, self._headers)
        answer = yield from self._repeated(contract.name, "infer", arguments, deadline)
        digest = decided_by(answer.as_numpy)
        if digest in (None, contract.model_digest):
            return read_answer(contract, request, answer.as_numpy)
        contract = yield from self._contract_of(digest, contract.name, deadline)
        return tuple(each.at_most_review(REPLACED) for each in read_answer(contract, request, answer.as_numpy))

    def _contract_of(self, digest: str, name: str, deadline: Deadline) -> Operation[Contract]:
        """Of the model that answered: its classes may have other names than those of the one before.

        While replicas are replaced in turn, one that is asked may still describe the one before.
        """
        for seconds in _TURNS:
            yield Pause(min(seconds, max(0.0, deadline.left())))
            contract = yield from self._fresh_contract(name, deadline)
            if contract.model_digest == digest:
                return contract
        raise ServerUnavailable(f"{self._about(name)} is being replaced by another version; ask again")

    def _contract(self, name: str, deadline: Deadline) -> Operation[Contract]:
        known = self._contracts.get(name)
        return known if known is not None else (yield from self._fresh_contract(name, deadline))

    def _fresh_contract(self, name: str, deadline: Deadline) -> Operation[Contract]:
        call = {"model_name": name, "headers": self._headers or None}
        config = yield from self._repeated(name, "get_model_config", lambda _: call, deadline)
        self._contracts[name] = contract_of(name, config)
        self._retry_after[name] = retry_after_of(config)
        return self._contracts[name]

    def _repeated(
        self, name: str, method: str, arguments: Callable[[float], Mapping[str, Any]], deadline: Deadline
    ) -> Operation[Any]:
        tries = Tries(self._retry.pauses(self._jitter), self._retry.recovery)
        return repeated(self._about(name), method, arguments, deadline, tries, self._retry_after.get(name, 0.0))

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self._timeout if timeout is None else timeout)

    def _about(self, name: str) -> str:
        return f"{name} at {self._url}"


def _one(image: ArrayLike, rank: int) -> NDArray[Any]:
    """`[C, *S]` or `[1, C, *S]` → `[1, C, *S]`."""
    try:
        given = np.asarray(image)
    except ValueError as error:
        raise InvalidInput("image is a ragged nesting of lists; expected one array [C, *S]") from error
    if given.ndim == rank + 2 and len(given) == 1:
        return given
    if given.ndim == rank + 2:
        raise InvalidInput(f"{len(given)} images, shape {list(given.shape)}; call predict_batch for other than one")
    return given[None]


def _blocking(
    operation: Callable[Concatenate[_Dialogue, P], Operation[T]],
) -> Callable[Concatenate[UncertaintyClient, P], T]:
    """The operation as a method that waits; signature and docstring are the operation's."""

    @functools.wraps(operation)
    def method(client: UncertaintyClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return drive(client._connection, operation(client._dialogue, *args, **kwargs))

    return method


def _awaited(
    operation: Callable[Concatenate[_Dialogue, P], Operation[T]],
) -> Callable[Concatenate[AsyncUncertaintyClient, P], Coroutine[Any, Any, T]]:
    """The operation as a coroutine method; signature and docstring are the operation's."""

    @functools.wraps(operation)
    async def method(client: AsyncUncertaintyClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await drive_async(client._connect(), operation(client._dialogue, *args, **kwargs))

    return method


class UncertaintyClient:
    """Predictions with their uncertainty, from a server. Blocking; threads may share one client.

    >>> with UncertaintyClient("localhost:8001") as client:  # doctest: +SKIP
    ...     prediction = client.predict("hippocampus", image, spacing=(1.0, 1.0, 1.0))
    >>> prediction.route, prediction.volume["anterior"].mean  # doctest: +SKIP
    (<Route.REVIEW: 'review'>, 1.83)

    Args:
        url: `host:port` of Triton's gRPC service.
        timeout: seconds for one call, all its tries included.
        tls: how to encrypt; None: no encryption, for loopback only.
        retry: when to try again; `Retry(attempts=1)`: never.
        headers: gRPC metadata for every call, such as a proxy's access token; names in lower case.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: Tls | None = None,
        retry: Retry = DEFAULT_RETRY,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._dialogue = _Dialogue(url, timeout, retry, headers)
        self._connection = connect(url, tls)

    predict = _blocking(_Dialogue.predict)
    predict_batch = _blocking(_Dialogue.predict_batch)
    contract = _blocking(_Dialogue.contract)
    models = _blocking(_Dialogue.models)
    ready = _blocking(_Dialogue.ready)

    def close(self) -> None:
        """Closes the connection; `with` does it too."""
        self._connection.close()

    def __enter__(self) -> UncertaintyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncUncertaintyClient:
    """`UncertaintyClient` for asyncio: `await client.predict(…)`. Belongs to the event loop that first uses it.

    Cancelling the task cancels the call on the wire, and the server stops drawing samples.

    Arguments are those of `UncertaintyClient`.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        tls: Tls | None = None,
        retry: Retry = DEFAULT_RETRY,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._dialogue = _Dialogue(url, timeout, retry, headers)
        self._connect = functools.cache(functools.partial(connect_async, url, tls))  # needs a running loop: not yet

    predict = _awaited(_Dialogue.predict)
    predict_batch = _awaited(_Dialogue.predict_batch)
    contract = _awaited(_Dialogue.contract)
    models = _awaited(_Dialogue.models)
    ready = _awaited(_Dialogue.ready)

    async def close(self) -> None:
        """Closes the connection; `async with` does it too."""
        await self._connect().close()

    async def __aenter__(self) -> AsyncUncertaintyClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
