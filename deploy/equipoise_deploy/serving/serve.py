"""`equipoise serve`, without its command line: start, prove, monitor, restart or reload, stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import DeployError, StartError
from ..ports import LOOPBACK, USUAL_PORTS, Ports
from ..repository import public_models
from .closing import AcceptSwitch
from .container import container_command
from .health import USUAL_PORT, HealthServer
from .monitor import CHECK_EVERY
from .readiness import Probe, answers_ready, check_readiness
from .supervisor import Plan, Supervisor


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; like KeyboardInterrupt a request, not an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class PendingSignals:
    """What signals asked for and was not carried out yet.

    Attributes:
        reload: SIGHUP arrived.
        stop: the number of the SIGINT or SIGTERM that arrived; 0: none.
    """

    reload: bool = False
    stop: int = 0

    def raise_stop(self) -> None:
        """Raises Stopped where it was asked for, and further signals cannot disturb the clean-up any more."""
        if self.stop:
            ignore_stops()
            raise Stopped(self.stop)


def ignore_stops() -> None:
    """Also SIGHUP: there is nothing to reload any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class Listening:
    """A server that has proved itself.

    Attributes:
        grpc, http, metrics, health: where it listens; health is empty where there is none.
        probes: the public models' answers to a synthetic image.
        seconds: from the call until now.
        left_out: public models that are not served because they failed, and why.
    """

    grpc: str
    http: str
    metrics: str
    probes: tuple[Probe, ...]
    seconds: float
    health: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def signals() -> Iterator[PendingSignals]:
    """Inside, the first SIGINT or SIGTERM raises Stopped, further ones cannot disturb the clean-up, and SIGHUP asks
    for a reload.

    Python drops an exception that is raised while a finaliser runs (`__del__`, a callback of gRPC's objects). So the
    request is noted as well, and whoever waits in a loop looks at it; and the next signal raises again.
    """
    pending = PendingSignals()

    def stop(number: int, frame: FrameType | None) -> None:
        pending.stop = number
        ignore_stops()
        raise Stopped(number)

    def dropped(found: Any) -> None:
        if isinstance(found.exc_value, Stopped):
            listen()
        report_dropped(found)

    def listen() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def reload(number: int, frame: FrameType | None) -> None:
        pending.reload = True

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: reload}
    before = {number: signal.getsignal(number) for number in handlers}
    report_dropped, sys.unraisablehook = sys.unraisablehook, dropped
    listen()
    try:
        yield pending
    finally:
        sys.unraisablehook = report_dropped
        for number, earlier in before.items():
            signal.signal(number, earlier)


def serve(
    plan: Plan,
    health_port: int = USUAL_PORT,
    on_log: Callable[[str], None] = lambda line: None,
    on_ready: Callable[[Listening], None] = lambda listening: None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Serves until SIGINT or SIGTERM; on SIGHUP it serves what the repository holds then.

    Raises DeployError when the server cannot start, GaveUp when it cannot be kept.
    """
    begin = time.monotonic()
    with signals() as pending, ExitStack() as opened:
        switch = opened.enter_context(AcceptSwitch(plan.close_on_alarm, report)) if plan.close_on_alarm else None
        health = opened.enter_context(HealthServer(health_port, plan.address))
        supervisor = Supervisor(plan, health, on_log, report, switch)
        try:
            probes = supervisor.start()
            server, seconds = supervisor.server, time.monotonic() - begin
            urls = server.grpc_url, server.http_url, server.metrics_url
            on_ready(Listening(*urls, probes, seconds, health.url, dict(supervisor.left_out)))
            while True:
                pending.raise_stop()
                if switch is not None:
                    switch.look()
                if pending.reload:
                    pending.reload = False
                    supervisor.reload()
                elif trouble := supervisor.check():
                    supervisor.restart(trouble)
                else:
                    time.sleep(CHECK_EVERY)
        except Stopped as stopped:
            if stopped.number != signal.SIGINT:  # Ctrl-C does not wait for a proxy
                supervisor.drain("stopping")
        finally:
            supervisor.stop("stopping")


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
        with signals() as pending:
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
                    pending.raise_stop()
                    if engine.poll() is not None:
                        raise StartError(f"{program} ended with exit code {engine.returncode}; see its output above")
                    time.sleep(0.1)
                urls = [f"{LOOPBACK}:{port}" for port in (chosen.grpc, chosen.http)]
                probes = check_readiness(urls[0], models)
                metrics = f"http://{LOOPBACK}:{chosen.metrics}/metrics"
                on_ready(Listening(urls[0], urls[1], metrics, probes, time.monotonic() - begin))
                while engine.poll() is None:
                    pending.raise_stop()
                    time.sleep(0.1)
                raise DeployError(f"the container ended by itself with exit code {engine.returncode}")
            finally:
                engine.terminate()  # passed on to Triton; nobody drains its queues first, as the guardian does
                engine.wait()
                reader.join()
    except Stopped:
        return


def _pass_on(log: Iterable[str], on_log: Callable[[str], None]) -> None:
    for line in log:
        on_log(line.rstrip("\n"))
