"""What was accepted is answered, and what was started is gone: under load, with dying clients, and at the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from equipoise_client import AsyncUncertaintyClient, Retry, UncertaintyClient
from equipoise_client.errors import ServerUnavailable
from equipoise_deploy.ports import Ports
from equipoise_deploy.readiness import check_readiness
from equipoise_deploy.server import TritonServer

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
PATIENCE = 90.0  # seconds until something that must happen counts as not happening

ASK_FOR_EVER = """
import sys, numpy as np
from equipoise_client import UncertaintyClient
image = np.random.default_rng(0).uniform(0, 255, (1, 256, 256)).astype(np.float32)
with UncertaintyClient(sys.argv[1]) as client:
    client.contract("nuclei")
    print("asking", flush=True)
    while True:
        client.predict("nuclei", image, samples=100, outputs=())
"""


def until(condition, what: str) -> None:
    """Polls until `condition()` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.05)  # a pause between two looks, not a wait for something to have happened


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("equipoise_")}


def radiograph(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (1, 28, 28)).astype(np.float32)


@pytest.fixture
def serving():
    """`equipoise serve` as a user starts it: the process, and its gRPC address."""
    before = shared_memory()
    command = [str(Path(sys.executable).with_name("equipoise")), "serve", str(REPOSITORY), "--json"]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen([*command, *ports, "--engine", "embedded"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        listening = json.loads(process.stdout.readline())
        yield process, listening["grpc"]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        until(lambda: shared_memory() <= before, "shared memory is given back")


def test_a_killed_client_disturbs_nobody(server):
    """SIGKILL in the middle of a request: the next good request succeeds."""
    client = subprocess.Popen([sys.executable, "-c", ASK_FOR_EVER, server.grpc_url], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline() == "asking\n"
    client.kill()
    client.wait()
    client.stdout.close()
    with UncertaintyClient(server.grpc_url) as other:
        assert other.predict("pneumonia", radiograph(0), outputs=()).samples_used == 20


def test_two_hundred_at_once_are_all_answered(server):
    """Each gets its own answer, the same as alone; a full queue would be an error that says so, never silence."""

    async def ask_all() -> list[object]:
        async with AsyncUncertaintyClient(server.grpc_url, timeout=PATIENCE, retry=Retry(attempts=1)) as client:
            questions = (client.predict("pneumonia", radiograph(i % 10), outputs=("mean",)) for i in range(200))
            return await asyncio.gather(*questions, return_exceptions=True)

    answers = asyncio.run(ask_all())
    assert len(answers) == 200
    with UncertaintyClient(server.grpc_url) as client:
        alone = [client.predict("pneumonia", radiograph(i), outputs=("mean",)) for i in range(10)]
    for i, answer in enumerate(answers):
        if isinstance(answer, ServerUnavailable):
            continue
        assert not isinstance(answer, BaseException), answer
        np.testing.assert_allclose(answer.mean, alone[i % 10].mean, atol=1e-5)
    assert sum(not isinstance(answer, BaseException) for answer in answers) >= 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_loses_nothing(serving, number):
    """Every request ends in an answer or in an error that says the server is going; then nothing is left of it."""
    process, url = serving
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    outcomes: list[object] = []
    started = threading.Barrier(9)

    def ask(seed: int) -> None:
        with UncertaintyClient(url, timeout=PATIENCE, retry=Retry(attempts=1)) as client:
            client.predict("pneumonia", radiograph(seed), outputs=())
            started.wait()
            for i in range(1000):
                try:
                    outcomes.append(client.predict("pneumonia", radiograph(1000 * seed + i), outputs=()))
                except ServerUnavailable as gone:
                    outcomes.append(gone)
                    return
                except Exception as error:  # noqa: BLE001 (whatever it is belongs to the outcome)
                    outcomes.append(error)
                    return

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    until(lambda: len(outcomes) >= 16, "requests are answered")
    process.send_signal(number)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a request hangs"
    assert process.wait(PATIENCE) == 0
    strange = [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, ServerUnavailable)]
    assert strange == []
    until(lambda: not any(psutil.pid_exists(member.pid) for member in family[1:]), "no process is left")


def test_a_killed_parent_leaves_nothing(serving):
    """SIGKILL gives `serve` no chance to clean up; its guardian does."""
    process, _ = serving
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(psutil.pid_exists(member.pid) for member in family), "no process is left")


def test_a_restart_serves_again():
    """A second server beside the first, and after it: nothing of one stands in the way of the other."""
    for _ in range(2):
        with TritonServer(REPOSITORY, ports=Ports(0, 0, 0)) as server:
            assert check_readiness(server.grpc_url, server.models)
