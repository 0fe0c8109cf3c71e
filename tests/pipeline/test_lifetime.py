"""What was accepted is answered, and what was started is gone: under load, with dying clients, and at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_client import AsyncUncertaintyClient, Retry, UncertaintyClient
from equipoise_client.errors import ServerUnavailable
from equipoise_core.case import Case
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.guardian import STOPPING_FILE
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_deploy.serving.settings import Settings
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.publish.repository import publish_pair
from numpy.typing import NDArray

from ..support.asking import MODELS, SMALL, ask, case, inputs_of, metric, picture, poll
from ..support.processes import Serving, serving
from ..support.repositories import closed, gated

pytestmark = pytest.mark.triton

PATIENCE = 90.0  # seconds until something that must happen counts as not happening
WHY = ("server is stopping", "has no available versions")  # ours or Triton's, which unloads the models at its end
NOBODY = ("failed to connect", "socket closed", "connection reset")  # gRPC's words where no server says anything
IMAGE = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)

ASK_FOR_LONG = """
import sys
import numpy as np
import tritonclient.grpc as triton

images = np.zeros((32, 1, 64, 64), np.float32)
samples = np.full((32, 1), 1000, np.int32)
tensors = {"image": (images, "FP32"), "samples": (samples, "INT32")}
inputs = [triton.InferInput(n, a.shape, t).set_data_from_numpy(a) for n, (a, t) in tensors.items()]
with triton.InferenceServerClient(sys.argv[1]) as client:
    client.infer("tinyseg", inputs)
"""


@pytest.fixture(scope="module")
def tiny_repository(tmp_path_factory, tiny_segmentation) -> Path:
    folder = tmp_path_factory.mktemp("lifetime") / "models"
    publish_pair(tiny_segmentation, folder)
    return folder


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def held_repository(tmp_path_factory, tiny_segmentation, gate) -> Path:
    """The same model; no sample is drawn while the gate is closed."""
    folder = tmp_path_factory.mktemp("held") / "models"
    publish_pair(tiny_segmentation, folder)
    gated(folder / "tinyseg_sampler", gate)
    return folder


@pytest.fixture
def started(tiny_repository, tmp_path) -> Iterator[Serving]:
    with serving(tiny_repository, tmp_path / "run", os.environ) as server:
        yield server


def _running(metrics_url: str) -> float:
    """Requests of the tiny model that are being answered."""
    return metric(metrics_url, "equipoise_in_flight", 'model="tinyseg"')


def _accepted(metrics_url: str) -> float:
    """Those, and the ones that wait; one that moves on between the two looks is missed rather than counted twice."""
    running = _running(metrics_url)
    return running + metric(metrics_url, "nv_inference_pending_request_count", 'model="tinyseg"')


def _assert_nothing_remains(server: Serving) -> None:
    poll(lambda: not server.remains(), f"nothing is left of the server: {server.remains()}", PATIENCE)


@dataclass
class Burst:
    """Requests that were all sent at once, each with a seed of its own; outcomes by seed."""

    client: triton.InferenceServerClient
    samples: int

    def __post_init__(self) -> None:
        self.outcomes: dict[int, triton.InferResult | Exception] = {}
        self._done = threading.Semaphore(0)
        self.sent = 0

    def send(self, count: int) -> None:
        for seed in range(self.sent, self.sent + count):

            def receive(result, error, seed=seed) -> None:
                self.outcomes[seed] = result if error is None else error
                self._done.release()

            tensors = inputs_of(triton, case(IMAGE, samples=self.samples, seed=seed))
            wanted = [triton.InferRequestedOutput(name) for name in ("mean", "samples_used")]
            self.client.async_infer("tinyseg", tensors, receive, outputs=wanted)
        self.sent += count

    def wait(self) -> None:
        """Until each has an outcome: none may be lost without a word."""
        for _ in range(self.sent):
            assert self._done.acquire(timeout=PATIENCE), f"{self.sent - len(self.outcomes)} requests were lost"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_before_the_stop_is_answered(started, tiny_repository, number):
    """60 requests wait or run when the signal comes: all get their own whole answers; then nothing is left, exit 0."""
    url = started.urls["metrics"]
    with triton.InferenceServerClient(started.urls["grpc"]) as client:
        burst = Burst(client, samples=400)
        burst.send(60)
        poll(lambda: len(burst.outcomes) + _accepted(url) >= 60, "all requests are accepted")
        assert len(burst.outcomes) < 40, "nearly nothing was left to answer: this would prove nothing"
        started.process.send_signal(number)
        burst.wait()
    _, log = started.process.communicate(timeout=PATIENCE)
    assert started.process.returncode == 0, log
    assert not started.remains()

    local = load_model(tiny_repository / "tinyseg" / "1")
    sampler = OnnxSampler(tiny_repository / "tinyseg_sampler" / "1" / "model.onnx", threads=1)
    for seed, outcome in burst.outcomes.items():
        assert not isinstance(outcome, Exception), (seed, outcome)
        assert int(outcome.as_numpy("samples_used")[0, 0]) == 400
        expected = assess(local, Case(IMAGE, samples=400, seed=seed), [sampler]).uncertainty.mean
        np.testing.assert_allclose(outcome.as_numpy("mean")[0], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_stop_comes_to_its_end_though_clients_keep_asking(started):
    """Every request ends in an answer or in a refusal that says why, and the server does not serve on for ever."""
    outcomes: list[tuple[float, BaseException | None]] = []
    begun = threading.Barrier(9)

    def keep_asking(seed: int) -> None:
        with UncertaintyClient(started.urls["grpc"], timeout=PATIENCE, retry=Retry(attempts=1)) as client:
            client.contract("tinyseg")
            begun.wait()
            refused = 0
            while refused < 3:
                asked = time.monotonic()
                try:
                    client.predict("tinyseg", IMAGE, samples=200, seed=seed, outputs=())
                    outcomes.append((asked, None))
                except Exception as error:  # noqa: BLE001 (whatever it is belongs to the outcomes)
                    outcomes.append((asked, error))
                    refused += 1

    threads = [threading.Thread(target=keep_asking, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    poll(lambda: len(outcomes) >= 16, "requests are answered")
    stopped = time.monotonic()
    started.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a request hangs"
    _, log = started.process.communicate(timeout=PATIENCE)
    assert started.process.returncode == 0, log
    assert not started.remains()
    errors = [(asked - stopped, error) for asked, error in outcomes if error is not None]
    assert all(isinstance(error, ServerUnavailable) for _, error in errors), errors
    # A request that was sent in the last moment before the signal may have arrived after it.
    assert all(after > -0.5 for after, _ in errors), errors
    reached = [error for _, error in errors if not any(words in str(error).lower() for words in NOBODY)]
    assert all(any(words in str(error).lower() for words in WHY) for error in reached), reached


@pytest.mark.slow
def test_while_it_stops_a_model_says_so(tiny_repository, tmp_path, monkeypatch):
    """What comes once all that was accepted has begun is refused in these words, whichever client it is that asks."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        TritonServer(tiny_repository, ports=Ports(0, 0, 0)) as server,
        UncertaintyClient(server.grpc_url, timeout=PATIENCE, retry=Retry(attempts=1)) as client,
    ):
        assert client.predict("tinyseg", IMAGE, outputs=()).samples_used == 20
        (folder,) = tmp_path.glob("equipoise-*")
        (folder / STOPPING_FILE).touch()  # as the guardian does
        with pytest.raises(ServerUnavailable, match="the server is stopping: ask again later"):
            client.predict("tinyseg", IMAGE, outputs=())


@pytest.mark.slow
def test_a_killed_parent_leaves_nothing(started):
    """SIGKILL under load gives `serve` no chance to clean up: its guardian does."""
    with triton.InferenceServerClient(started.urls["grpc"]) as client:
        burst = Burst(client, samples=100)
        burst.send(20)
        poll(lambda: burst.outcomes, "the first answer")
        os.kill(started.process.pid, signal.SIGKILL)
        burst.wait()
    started.process.communicate()
    _assert_nothing_remains(started)


def test_a_killed_clients_work_is_given_up(server):
    """SIGKILL in the middle of a request: its samples are not drawn to the end, and the next good request succeeds."""
    if server.metrics_url is None:
        pytest.skip("EQUIPOISE_TRITON_URL names a server whose metrics are not known")

    def cancelled() -> float:
        return metric(server.metrics_url, "equipoise_failures_total", 'kind="Cancelled"', 'model="tinyseg"')

    before = cancelled()
    client = subprocess.Popen([sys.executable, "-c", ASK_FOR_LONG, server.grpc_url])
    try:
        poll(lambda: _running(server.metrics_url), "the request runs")
        assert client.poll() is None
    finally:
        client.kill()
        client.wait()
    poll(lambda: cancelled() == before + 1 and not _running(server.metrics_url), "the request is given up")
    with UncertaintyClient(server.grpc_url) as other:
        assert other.predict("tinyseg", IMAGE, outputs=()).samples_used == 20


@pytest.mark.slow
def test_two_hundred_at_once_are_all_answered(server, grpc_client, contracts):
    """Over all models and sizes: each gets the answer it gets alone, or a refusal that says why, never silence."""
    kinds = [(model, size) for model in MODELS for size in SMALL[model]]
    # Each of 30 questions comes several times, always among others.
    questions = [(*kinds[i % len(kinds)], i) for i in range(30)]

    def image(question: tuple[str, tuple[int, ...], int]) -> NDArray[np.float32]:
        model, size, seed = question
        return picture(contracts[model], size, seed)

    async def ask_all() -> list[object]:
        async with AsyncUncertaintyClient(server.grpc_url, timeout=PATIENCE, retry=Retry(attempts=1)) as client:
            await asyncio.gather(*(client.contract(model) for model in MODELS))
            asked = (questions[i % 30] for i in range(200))
            calls = (client.predict(q[0], image(q), samples=4, seed=q[2], outputs=("mean",)) for q in asked)
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(ask_all())
    assert len(answers) == 200
    assert sum(isinstance(answer, ServerUnavailable) for answer in answers) < 100
    alone = [ask(grpc_client, q[0], case(image(q), samples=4, seed=q[2]), ("mean",))["mean"][0] for q in questions]
    for i, answer in enumerate(answers):
        if not isinstance(answer, ServerUnavailable):
            assert not isinstance(answer, BaseException), answer
            np.testing.assert_allclose(answer.mean, alone[i % 30], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_full_queue_refuses_clearly(held_repository, gate):
    """What the queue does not hold is refused as UNAVAILABLE, with that reason; the rest is answered."""
    aggregators, room = 4, 256
    settings = {"tinyseg": Settings(aggregators=aggregators)}
    with (
        TritonServer(held_repository, ports=Ports(0, 0, 0), settings=settings) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        burst = Burst(client, samples=20)
        with closed(gate):
            burst.send(aggregators)
            poll(lambda: _running(server.metrics_url) == aggregators, "as many as can be are worked on")
            burst.send(300)
            expected = (300 - room, aggregators + room)
            poll(lambda: (len(burst.outcomes), _accepted(server.metrics_url)) == expected, "all others are refused")
        burst.wait()
    refused = [outcome for outcome in burst.outcomes.values() if isinstance(outcome, Exception)]
    assert len(refused) == 300 - room and len(burst.outcomes) == burst.sent
    assert {error.status() for error in refused} == {"StatusCode.UNAVAILABLE"}
    assert all("queue" in error.message() for error in refused), refused[0]


@pytest.mark.slow
def test_two_servers_side_by_side(tiny_repository):
    """A second server beside the first, and after it: nothing of one stands in the way of the other."""
    with TritonServer(tiny_repository, ports=Ports(0, 0, 0)) as first:
        with TritonServer(tiny_repository, ports=Ports(0, 0, 0)) as second:
            assert check_readiness(first.grpc_url, first.models) and check_readiness(second.grpc_url, second.models)
        assert check_readiness(first.grpc_url, first.models)
