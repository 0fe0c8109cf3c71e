"""`equipoise serve`, without its command line: start, prove, wait, stop."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from .container import container_command
from .errors import DeployError, StartError
from .ports import LOOPBACK, USUAL_PORTS, Ports
from .readiness import Probe, answers_ready, check_readiness
from .server import TritonServer
from .settings import NONE, Settings
from .staging import public_models


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; like KeyboardInterrupt a wish, not an error."""


@dataclass(frozen=True)
class Listening:
    """A server that has proved itself.

    Attributes:
        grpc, http, metrics: where it listens.
        probes: the public models' answers to a synthetic image.
        seconds: from the call until now.
    """

    grpc: str
    http: str
    metrics: str
    probes: tuple[Probe, ...]
    seconds: float


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises Stopped; further ones cannot disturb the cleaning up after it."""

    def raise_once(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, raise_once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(
    repository: Path,
    ports: Ports = USUAL_PORTS,
    on_log: Callable[[str], None] = lambda line: None,
    on_ready: Callable[[Listening], None] = lambda listening: None,
    settings: Mapping[str, Settings] = NONE,
) -> None:
    """Serves until SIGINT or SIGTERM. Raises DeployError when the server cannot start or ends by itself."""
    begin = time.monotonic()
    try:
        with stop_on_signals(), TritonServer(repository, ports=ports, on_log=on_log, settings=settings) as server:
            probes = check_readiness(server.grpc_url, server.models)
            on_ready(Listening(server.grpc_url, server.http_url, server.metrics_url, probes, time.monotonic() - begin))
            code = server.wait()
            raise DeployError(f"Triton ended by itself with exit code {code}. It said:\n{server.relevant_log}")
    except Stopped:
        return


def serve_in_container(
    program: str,
    image: str,
    repository: Path,
    ports: Ports = USUAL_PORTS,
    on_log: Callable[[str], None] = lambda line: None,
    on_ready: Callable[[Listening], None] = lambda listening: None,
) -> None:
    """The same in a container. Never executed so far, see `container`."""
    begin, chosen, models = time.monotonic(), ports.chosen(), public_models(repository)
    try:
        with stop_on_signals():
            engine = subprocess.Popen(
                container_command(program, repository, chosen, image),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            assert engine.stdout is not None
            reader = threading.Thread(target=_pass_on, args=(engine.stdout, on_log), daemon=True)
            reader.start()
            try:
                while not answers_ready(chosen.http):
                    if engine.poll() is not None:
                        raise StartError(f"{program} ended with exit code {engine.returncode}; see its output above")
                    time.sleep(0.1)
                urls = [f"{LOOPBACK}:{port}" for port in (chosen.grpc, chosen.http)]
                probes = check_readiness(urls[0], models)
                metrics = f"http://{LOOPBACK}:{chosen.metrics}/metrics"
                on_ready(Listening(urls[0], urls[1], metrics, probes, time.monotonic() - begin))
                raise DeployError(f"the container ended by itself with exit code {engine.wait()}")
            finally:
                engine.terminate()  # the engine passes it on to Triton, which finishes what it accepted
                engine.wait()
                reader.join()
    except Stopped:
        return


def _pass_on(log: Iterable[str], on_log: Callable[[str], None]) -> None:
    for line in log:
        on_log(line.rstrip("\n"))
