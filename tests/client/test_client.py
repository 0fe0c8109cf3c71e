"""The clients against a server that speaks the real protocol; properties hold for the blocking and the asyncio one."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from equipoise_client import (
    AsyncUncertaintyClient,
    BadAnswer,
    DeadlineExceeded,
    EquipoiseError,
    InvalidInput,
    ModelDied,
    NotPermitted,
    Priority,
    Retry,
    Route,
    ServerFailure,
    ServerUnavailable,
    UncertaintyClient,
    UnknownModel,
)

IMAGE = np.arange(4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
QUICK = Retry(attempts=4, first=0.001, longest=0.002, recovery=0.0)
BUSY = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: Any, triton: Any) -> Ask:
    """`ask("predict", "brain", image, …)` through one of the two clients."""

    def blocking(method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with UncertaintyClient(triton.url, **{"retry": QUICK, **(client or {})}) as connected:
            return getattr(connected, method)(*args, **kwargs)

    async def awaited(method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        async with AsyncUncertaintyClient(triton.url, **{"retry": QUICK, **(client or {})}) as connected:
            return await getattr(connected, method)(*args, **kwargs)

    return blocking if request.param == "blocking" else lambda *args, **kwargs: asyncio.run(awaited(*args, **kwargs))


def test_prediction_carries_what_the_server_said(ask: Ask) -> None:
    """Route, reason, score, volumes by name and the maps arrive as the server sent them, without the batch axis."""
    prediction = ask("predict", "brain", IMAGE, spacing=(1, 1, 1))
    assert prediction.route is Route.ACCEPT
    assert prediction.case_score == 0.125 and prediction.samples_used == 20
    assert set(prediction.volume.classes) == {"anterior", "posterior"}
    assert prediction.volume["anterior"].high == pytest.approx(2.2)
    assert prediction.volume.total.low == pytest.approx(3.7)
    assert prediction.mean.shape == (3, 4, 5, 6) and prediction.labels.shape == (1, 4, 5, 6)
    assert json.loads(json.dumps(prediction.document()))["volume"]["posterior"]["mean"] == 2.0


def test_only_what_is_asked_for_is_sent(ask: Ask, triton: Any) -> None:
    """`outputs=()` asks the server for the decision alone, and reading a map says how to get it."""
    prediction = ask("predict", "brain", IMAGE, outputs=())
    assert {output.name for output in triton.requests[-1].outputs}.isdisjoint({"mean", "variance", "labels"})
    with pytest.raises(InvalidInput, match=r"outputs=\('mean',\)"):
        _ = prediction.mean


def test_request_says_what_the_caller_said(ask: Ask, triton: Any) -> None:
    """Samples, the whole range of seeds, spacing and priority reach the wire in the public model's types."""
    ask("predict", "brain", IMAGE, samples=7, seed=2**64 - 1, spacing=(1.0, 2.0, 3.0), priority=Priority.URGENT)
    tensors = triton.tensors[-1]
    assert tensors["samples"].tolist() == [[7]] and tensors["samples"].dtype == np.int32
    assert tensors["seed"].tolist() == [[2**64 - 1]]
    assert tensors["spacing"].tolist() == [[1.0, 2.0, 3.0]]
    np.testing.assert_array_equal(tensors["image"], IMAGE[None])
    assert triton.requests[-1].parameters["priority"].uint64_param == 1
    assert "group" not in triton.requests[-1].parameters


def test_a_group_is_a_parameter_of_the_request(ask: Ask, triton: Any) -> None:
    """One for all images of it; a published model's inputs stay as they are."""
    ask("predict_batch", "brain", np.stack([IMAGE, IMAGE]), group="Scanner Ü")
    assert triton.requests[-1].parameters["group"].string_param == "Scanner Ü"
    assert set(triton.tensors[-1]) == {"image"}


def test_deadline_is_told_to_the_server(ask: Ask, triton: Any) -> None:
    """Triton's own request timeout is what is left of the caller's, in microseconds."""
    ask("predict", "brain", IMAGE, timeout=60.0)
    assert 0 < triton.requests[-1].parameters["timeout"].int64_param <= 60_000_000


def test_batch_gives_one_prediction_per_image(ask: Ask, triton: Any) -> None:
    """N images with N seeds in one request come back as N predictions."""
    predictions = ask("predict_batch", "brain", np.stack([IMAGE] * 3), seeds=(1, 2, 3), spacing=(1, 1, 1))
    assert len(predictions) == 3 and len(triton.requests) == 1
    assert triton.tensors[-1]["seed"].tolist() == [[1], [2], [3]]
    with pytest.raises(InvalidInput, match="predict_batch"):
        ask("predict", "brain", np.stack([IMAGE] * 3))


def test_contract_is_asked_once(triton: Any) -> None:
    """A client reads a model's contract once, however many predictions it asks for."""
    with UncertaintyClient(triton.url) as client:
        for _ in range(3):
            client.predict("brain", IMAGE)
    assert triton.configs == 1


def test_replaced_model_gives_its_own_class_names(triton: Any, brain: Any) -> None:
    """A client that knows an old contract never puts old class names on a new model's volumes."""
    from dataclasses import replace

    with UncertaintyClient(triton.url) as client:
        client.predict("brain", IMAGE)
        triton.contracts["brain"] = replace(brain, classes=("background", "posterior", "anterior"))
        prediction = client.predict("brain", IMAGE)
        again = client.predict("brain", IMAGE)
    assert list(prediction.volume.classes) == ["posterior", "anterior"]
    # Its image was prepared as the old one wanted it: perhaps turned the other way.
    assert (prediction.route, again.route) == (Route.REVIEW, Route.ACCEPT) and "replaced" in prediction.reason


def test_a_replica_that_still_describes_the_model_before_is_asked_again(ask: Ask, triton: Any, brain: Any) -> None:
    """While replicas are replaced in turn; one that goes on describing it is no reason to guess."""
    from dataclasses import replace

    new = replace(brain, classes=("background", "posterior", "anterior"))
    with UncertaintyClient(triton.url) as client:
        client.predict("brain", IMAGE)
        triton.contracts["brain"], triton.described["brain"] = new, [brain, brain]
        assert list(client.predict("brain", IMAGE).volume.classes) == ["posterior", "anterior"]
        triton.contracts["brain"], triton.described["brain"] = brain, [new] * 9
        with pytest.raises(ServerUnavailable, match="is being replaced"):
            client.predict("brain", IMAGE)


BAD_IMAGES = {
    "nan": (np.where(IMAGE == 3, np.nan, IMAGE), "1 of 120 values"),
    "infinite": (np.where(IMAGE == 3, np.inf, IMAGE), "1 of 120 values"),
    "beyond float32": (np.where(IMAGE == 3, 1e300, IMAGE.astype(np.float64)), "beyond float32"),
    "complex": (IMAGE.astype(np.complex64), "complex64"),
    "text": (np.full((1, 2, 2, 2), "a"), "real numbers"),
    "objects": (np.full((1, 2, 2, 2), None), "object"),
    "ragged": ([[1.0], [1.0, 2.0]], "ragged"),
    "rank": (IMAGE[0], r"\[C, X, Y, Z\]"),
    "channels": (np.concatenate([IMAGE] * 2), "2 channels"),
    "empty": (IMAGE[:, :0], "empty"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image_is_refused_before_it_is_sent(name: str, triton: Any) -> None:
    """What cannot be an image is refused with what was given and expected, and nothing goes over the wire."""
    image, words = BAD_IMAGES[name]
    with UncertaintyClient(triton.url) as client, pytest.raises(InvalidInput, match=words):
        client.predict("brain", image)
    assert not triton.requests


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0},
        {"samples": -1},
        {"samples": 2.5},
        {"samples": True},
        {"seed": -1},
        {"seed": 2**64},
        {"spacing": (1.0, 1.0)},
        {"spacing": 1.0},
        {"spacing": (1.0, 0.0, 1.0)},
        {"spacing": (1.0, float("nan"), 1.0)},
        {"spacing": "1,1,1"},
        {"outputs": ("median",)},
        {"priority": 3},
        {"group": 3},
        {"timeout": 0.0},
    ],
    ids=str,
)
def test_bad_option_is_refused_before_it_is_sent(options: dict[str, Any], triton: Any) -> None:
    """An option that means nothing is refused by the client."""
    with UncertaintyClient(triton.url) as client, pytest.raises(InvalidInput, match=r"expected|choose|number"):
        client.predict("brain", IMAGE, **options)
    assert not triton.requests


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.PERMISSION_DENIED, NotPermitted),
        (grpc.StatusCode.UNAUTHENTICATED, NotPermitted),
        (grpc.StatusCode.INTERNAL, ServerFailure),
        (grpc.StatusCode.UNKNOWN, ServerFailure),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.NOT_FOUND, UnknownModel),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, InvalidInput),
    ],
)
def test_each_code_has_its_error(ask: Ask, triton: Any, code: grpc.StatusCode, error: type[EquipoiseError]) -> None:
    """A code becomes its error with the server's words in it, and is not tried again."""
    triton.failures = [(code, "because of the test")] * 9
    with pytest.raises(error, match=r"brain at .*because of the test"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 1


def test_a_model_that_is_being_unloaded_is_unavailable(ask: Ask, triton: Any) -> None:
    """Triton calls it NOT_FOUND while it stops; asking again, or elsewhere, is right."""
    words = "Request for unknown model: 'brain' has no available versions"
    triton.failures = [(grpc.StatusCode.NOT_FOUND, words)]
    assert ask("predict", "brain", IMAGE) is not None
    assert len(triton.requests) == 2


def test_unknown_models_are_named(ask: Ask) -> None:
    """A model that is not there, and one that Equipoise did not publish, are UnknownModel."""
    with pytest.raises(UnknownModel, match="nobody"):
        ask("predict", "nobody", IMAGE)
    with pytest.raises(UnknownModel, match="carries no Equipoise contract"):
        ask("predict", "foreign", IMAGE)


def test_busy_server_is_asked_again(ask: Ask, triton: Any) -> None:
    """UNAVAILABLE is tried again until it works."""
    triton.failures = [BUSY] * 3
    assert ask("predict", "brain", IMAGE).route is Route.ACCEPT
    assert len(triton.requests) == 4


def test_retries_are_bounded(ask: Ask, triton: Any) -> None:
    """After the last attempt the server's own words come through."""
    triton.failures = [BUSY] * 99
    with pytest.raises(ServerUnavailable, match="maximum queue size"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 4


DEAD = (
    (grpc.StatusCode.INTERNAL, "Stub process 'brain_0_1' is not healthy."),
    (grpc.StatusCode.UNAVAILABLE, "the sampler failed: Stub process 'brain_sampler_0_0' is not healthy."),
)


@pytest.mark.parametrize("dead", DEAD)
def test_a_request_whose_model_died_is_sent_once_more(ask: Ask, triton: Any, dead: Any) -> None:
    """Another replica or the restarted server answers it."""
    triton.failures = [dead]
    assert ask("predict", "brain", IMAGE).route is Route.ACCEPT
    assert len(triton.requests) == 2


@pytest.mark.parametrize("dead", DEAD)
def test_a_request_that_kills_is_sent_twice_at_most(ask: Ask, triton: Any, dead: Any) -> None:
    """Also where it could not even be sent in between; it is a failure, not a server that is away."""
    triton.failures = [dead, BUSY, *[dead] * 99]
    with pytest.raises(ModelDied, match="not healthy"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 3 and not issubclass(ModelDied, ServerUnavailable)


@pytest.mark.parametrize("dead", DEAD)
def test_a_request_that_killed_is_not_excused_by_a_server_that_is_away(ask: Ask, triton: Any, dead: Any) -> None:
    """Who waits for a server that is away asks again without counting: it would be killed for ever."""
    triton.failures = [dead, *[BUSY] * 99]
    with pytest.raises(ModelDied, match="not healthy"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 4


@pytest.mark.parametrize("dead", DEAD)
def test_a_request_that_is_lost_under_way_after_its_model_died_counts_as_the_second(
    ask: Ask, triton: Any, dead: Any
) -> None:
    """The server it killed again may be restarted before it can say so."""
    triton.failures = [dead, (grpc.StatusCode.UNAVAILABLE, "Socket closed"), *[dead] * 99]
    with pytest.raises(ModelDied, match="not healthy"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 2


LOST = (
    (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    (grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer"),
    (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 502"),
)


@pytest.mark.parametrize("lost", LOST)
def test_a_request_that_is_lost_under_way_is_sent_twice_at_most(ask: Ask, triton: Any, lost: Any) -> None:
    """What kills a server as a whole leaves nobody to say so; in between it may not be let in."""
    triton.failures = [lost]
    ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 2
    triton.failures = [lost, BUSY, *[lost] * 99]
    with pytest.raises(ModelDied, match="may have died of it"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 2 + 3


@pytest.mark.parametrize("lost", LOST)
def test_a_request_that_was_lost_is_not_excused_by_a_server_that_is_away(ask: Ask, triton: Any, lost: Any) -> None:
    """It may be why the server is away."""
    triton.failures = [lost, *[BUSY] * 99]
    with pytest.raises(ModelDied, match="may have died of it"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 4


@pytest.mark.parametrize("lost", LOST)
def test_lost_once_and_not_tried_again_it_says_so(ask: Ask, triton: Any, lost: Any) -> None:
    """A cable that was cut for a moment is no reason to suspect the image."""
    triton.failures = [lost]
    with pytest.raises(ServerUnavailable) as error:
        ask("predict", "brain", IMAGE, client={"retry": Retry(attempts=1)})
    assert error.value.lost and len(triton.requests) == 1


def test_a_sampler_that_failed_and_lives_is_asked_again(ask: Ask, triton: Any) -> None:
    """The model has answered: nobody died."""
    triton.failures = [(grpc.StatusCode.UNAVAILABLE, "the sampler failed: out of memory")] * 3
    ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 4


@pytest.mark.parametrize(
    ("why", "failed"), [("out of memory", True), ("Exceeds maximum queue size", False), ("server is stopping", False)]
)
def test_a_sampler_that_failed_on_the_request_is_told_from_one_without_time(ask: Ask, triton: Any, why, failed) -> None:
    """The one may be the request's doing."""
    triton.failures = [(grpc.StatusCode.UNAVAILABLE, f"the sampler failed: {why}")]
    with pytest.raises(ServerUnavailable) as error:
        ask("predict", "brain", IMAGE, client={"retry": Retry(attempts=1)})
    assert error.value.failed == failed


def test_a_proxy_that_finds_a_message_too_large_is_understood(ask: Ask, triton: Any) -> None:
    """gRPC knows no code for HTTP's 413 and says UNKNOWN."""
    triton.failures = [(grpc.StatusCode.UNKNOWN, "Received http2 header with status: 413")]
    with pytest.raises(InvalidInput, match="too large"):
        ask("predict", "brain", IMAGE)
    assert len(triton.requests) == 1


def test_no_pause_runs_past_the_deadline(ask: Ask, triton: Any) -> None:
    """A pause that would not end before the deadline is not begun."""
    triton.failures = [BUSY] * 99
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable):
        ask("predict", "brain", IMAGE, timeout=25.0, client={"retry": Retry(attempts=9, first=60.0, longest=60.0)})
    assert time.monotonic() - begun < 20.0 and len(triton.requests) == 1


def test_slow_server_meets_the_deadline(ask: Ask, triton: Any) -> None:
    """A server that does not answer is left when the time is up."""
    triton.stall = threading.Event()
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="no answer in time"):
        ask("predict", "brain", IMAGE, timeout=4.0)
    assert triton.requests and time.monotonic() - begun < 25.0


def test_nobody_listening(ask: Ask, triton: Any) -> None:
    """An address where nothing listens is ServerUnavailable for predictions, and not ready."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        triton.url = f"localhost:{free.getsockname()[1]}"
        with pytest.raises(ServerUnavailable, match="not reachable"):
            ask("predict", "brain", IMAGE)
        assert ask("ready", "brain", timeout=2.0) is False


def test_ready(ask: Ask) -> None:
    """ready() is the server's own word."""
    assert ask("ready", "brain") is True
    assert ask("ready", "nobody") is False


def test_cancelling_the_task_cancels_the_call(triton: Any) -> None:
    """A cancelled task raises CancelledError, and the server learns that nobody waits any more."""
    triton.stall = threading.Event()

    async def run() -> None:
        async with AsyncUncertaintyClient(triton.url) as client:
            task = asyncio.create_task(client.predict("brain", IMAGE))
            await asyncio.to_thread(triton.arrived.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(triton.gone.wait, 10)

    asyncio.run(run())


UNTRUSTED = {
    "no route": {"route": None},
    "unknown route": {"route": np.full((1, 1), b"ACCEPT", object)},
    "empty route": {"route": np.full((1, 1), b"", object)},
    "route that is not text": {"route": np.full((1, 1), b"\xff\xfe", object)},
    "no record": {"record": None},
    "record that is not JSON": {"record": np.full((1, 1), b"{", object)},
    "record with another route": {"record": np.full((1, 1), b'{"route": "reject"}', object)},
    "score that is not a number": {"case_score": np.full((1, 1), np.nan, np.float32)},
    "no samples": {"samples_used": np.zeros((1, 1), np.int32)},
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_doubtful_answer_is_never_accepted(ask: Ask, triton: Any, name: str) -> None:
    """Whatever is missing, unknown or contradictory in an answer goes to review, with a reason."""
    triton.overrides = UNTRUSTED[name]
    prediction = ask("predict", "brain", IMAGE)
    assert prediction.route is Route.REVIEW and prediction.reason


@pytest.mark.parametrize(
    "override", [{"mean": None}, {"mean": np.zeros((1, 2, 4, 5, 6), np.float32)}, {"volume": None}]
)
def test_broken_promise_is_an_error(ask: Ask, triton: Any, override: dict[str, Any]) -> None:
    """Numbers that are missing or of another shape than the contract promises are BadAnswer, not None."""
    triton.overrides = override
    with pytest.raises(BadAnswer, match="should be"):
        ask("predict", "brain", IMAGE)


def test_reject_is_not_lifted_to_review(triton: Any) -> None:
    """Holding back never turns a rejection into a review."""
    triton.overrides = {
        "route": np.full((1, 1), b"reject", object),
        "record": np.full((1, 1), b'{"route": "reject"}', object),
    }
    with UncertaintyClient(triton.url) as client:
        held = client.predict("brain", IMAGE).at_most_review("doubt")
    assert held.route is Route.REJECT and "doubt" in held.reason


def test_two_clients_are_one(triton: Any) -> None:
    """Both clients have the same public methods with the same parameters."""
    for name in ("predict", "predict_batch", "contract", "ready", "__init__"):
        one, other = getattr(UncertaintyClient, name), getattr(AsyncUncertaintyClient, name)
        assert inspect.signature(one).parameters == inspect.signature(other).parameters


@pytest.mark.parametrize("url", ["http://localhost:8001", "localhost", ":8001", "localhost:grpc", ""])
def test_address_is_host_and_port(url: str) -> None:
    """An address with a scheme or without a port is refused with an example."""
    with pytest.raises(InvalidInput, match="localhost:8001"):
        UncertaintyClient(url)


def test_a_full_queue_says_when_to_ask_again(ask: Ask, triton: Any) -> None:
    """What the model's configuration asks refused callers to wait is waited, and told when the tries are used up."""
    triton.retry_after["brain"] = 40
    triton.failures = [BUSY] * 2
    begun = time.monotonic()
    ask("predict", "brain", IMAGE)
    assert time.monotonic() - begun >= 0.08
    triton.failures = [BUSY] * 99
    with pytest.raises(ServerUnavailable) as refused:
        ask("predict", "brain", IMAGE)
    assert refused.value.busy and refused.value.retry_after == 0.04


def test_an_unreachable_server_is_not_a_busy_one(ask: Ask, triton: Any) -> None:
    """Nobody said when to ask again."""
    triton.retry_after["brain"] = 60_000
    triton.failures = [(grpc.StatusCode.UNAVAILABLE, "connection refused")] * 3
    assert ask("predict", "brain", IMAGE).route is Route.ACCEPT
