"""A Triton of our own: started on loopback; after the stop no process, file or shared memory of it is left."""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from ..errors import StartError
from ..ports import LOOPBACK, USUAL_PORTS, Ports, reached_at
from ..releases.loading import verified_copy
from .closing import VARIABLE as CLOSED_VARIABLE
from .engine import Engine, find_engine, library_folders
from .guardian import STOPPING_FILE, in_flight
from .processes import Process, server_processes
from .readiness import answers_metrics, answers_ready
from .settings import NONE, Settings
from .staging import available_cores, link_pinned, stage_repository

GUARDIAN = Path(__file__).with_name("guardian.py")

HARDENING = (
    "--model-control-mode=none",  # nobody loads or unloads models from outside
    "--disable-auto-complete-config",  # what the configuration does not say, is not guessed
    "--strict-readiness=true",
    "--exit-on-error=true",
)
"""Triton's options wherever it runs, container or not."""

CLOSED = "shared-memory,model-repository,trace,logging"
"""APIs that nobody here needs. The first would let any client read and write the memory of the stubs, the others write
pixels to a log. Newer servers have `--allow-client-shm=false` besides (Dockerfile)."""

STOPPING_VARIABLE = "EQUIPOISE_STOPPING"
"""Names the file that the guardian creates when the public models should refuse new requests."""

SHARED_MEMORY_BYTES = 16 << 20
"""Of each stub at its start: enough for an image with its maps."""

_LOG_LINES_KEPT = 400
_PATIENCE = 5.0  # seconds beyond Triton's own exit timeout before its processes are killed
_AFTER_DEATH = 10.0  # seconds that the others have to load after a process of a model has died: Triton waits for it
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_FAILED = re.compile(r"failed to load '([^']+)'.*")
_ATTEMPTS = 5
_BY_SIGNAL = 128
"""Exit codes from here on: a crash. While its Python backend starts its processes a Triton now and then aborts with
`boost::interprocess::lock_exception` (2.51; later ones as well, see triton-inference-server/server issue 8882). Four
starts of one evening on a busy machine ended without a reason in the log, the one whose end was seen in that way; none
on an idle machine. The next attempt may succeed."""


class TritonServer:
    """Context manager around one server process: `with TritonServer(repository, ports=Ports(0, 0, 0)) as server:`.

    Args:
        repository: folder of published model pairs; nothing is written into it.
        engine: the Triton to start; by default the one that the environment names (see `engine`).
        ports: where to listen, on loopback; the attribute says where it listens, or did before it was stopped.
        on_log: called with each line of Triton's log, from a thread of its own.
        start_timeout: seconds until every model must have been loaded.
        exit_timeout: seconds that requests in flight have to finish after `stop`.
        settings: public model's name → how this machine runs it.
        address: where gRPC and metrics listen; HTTP stays on loopback, where only `start` needs it.
        pinned: earlier content of `repository` (`staging.pinned`), served instead of its present one.
        trust: public key that every model must be signed with; None: releases are held to their digests alone.
        left_out: models that `pinned` is without on purpose.
        closed: folder that says which policies may accept nothing, see `closing`.
    """

    def __init__(
        self,
        repository: Path,
        engine: Engine | None = None,
        ports: Ports = USUAL_PORTS,
        on_log: Callable[[str], None] = lambda line: None,
        start_timeout: float = 120.0,
        exit_timeout: int = 30,
        settings: Mapping[str, Settings] = NONE,
        address: str = LOOPBACK,
        pinned: Mapping[str, Path] | None = None,
        trust: Path | None = None,
        left_out: Collection[str] = (),
        closed: Path | None = None,
    ) -> None:
        self.repository = repository
        self._closed = closed
        self._left_out = left_out
        self._address = address
        self._pinned = pinned
        self._trust = trust
        self._settings = settings
        self.models: tuple[str, ...] = ()
        self._engine = engine or find_engine(os.environ)
        self._wanted = self.ports = ports
        self._on_log = on_log
        self._start_timeout = start_timeout
        self._exit_timeout = exit_timeout
        self._directory: Path | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._ended = threading.Event()
        self._crashed = False  # at the last start
        self._loaded: set[str] = set()
        self._failed: dict[str, str] = {}  # model → Triton's line about it
        self._died = math.inf  # when a process of a model was seen to die while the server started
        self._log: deque[str] = deque(maxlen=_LOG_LINES_KEPT)

    @property
    def grpc_url(self) -> str:
        """As tritonclient.grpc takes it: `127.0.0.1:8001`."""
        return f"{reached_at(self._address)}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """As tritonclient.http takes it, without a scheme."""
        return f"{LOOPBACK}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus scrapes."""
        return f"http://{reached_at(self._address)}:{self.ports.metrics}/metrics"

    @property
    def relevant_log(self) -> str:
        """What explains a failure: Triton's error lines and its reasons per model, else its last lines."""
        marks = ("UNAVAILABLE", "rror:", "terminate called", "what():")
        lines = [line for line in self._log if line[:1] == "E" or any(word in line for word in marks)]
        return "\n".join(dict.fromkeys(lines) if lines else list(self._log)[-20:])

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> TritonServer:
        """Returns when every model is loaded. Raises StartError with Triton's log where it ends before that."""
        for attempt in range(_ATTEMPTS):
            self.ports = self._wanted.chosen()
            try:
                self._launch()
                self._await_ready()
                return self
            except StartError:
                self.stop()
                if attempt == _ATTEMPTS - 1 or not self._by_chance():
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stop(self, hurry: signal.Signals | None = None) -> None:
        """Lets requests in flight finish, then ends every process; harmless when nothing runs.

        Args:
            hurry: `guardian.BRIEFLY` or `guardian.AT_ONCE` for a Triton that cannot stop in order.
        """
        guardian = self._guardian
        if guardian is None:
            return
        assert guardian.stdin is not None and guardian.stdout is not None
        if hurry is not None and guardian.poll() is None:
            guardian.send_signal(hurry)
        guardian.stdin.close()
        if self._reader is None:  # interrupted between the two lines of `_launch`
            guardian.stdout.close()
        guardian.wait()
        if self._reader is not None:
            self._reader.join()
        self._guardian = None  # not before: an interrupted stop has to be taken up again

    def processes(self) -> tuple[Process, ...]:
        """Triton and its stubs; empty when it has ended."""
        return () if self._guardian is None else server_processes(self._guardian.pid)

    def sampler_calls(self, model: str) -> int:
        """Calls of its samplers that the public model waits for."""
        assert self._directory is not None, "the server was not started"
        return in_flight(self._directory).get(model, (0, 0))[1]

    def exit_code(self) -> int | None:
        """Triton's, where it has ended by itself; None while it runs."""
        assert self._guardian is not None, "the server was not started"
        return self._guardian.poll()

    def _by_chance(self) -> bool:
        """Whether the next attempt may succeed: another process can take a picked port before Triton binds it."""
        picked = 0 in (self._wanted.grpc, self._wanted.http, self._wanted.metrics)
        return self._crashed or (picked and any("already in use" in line for line in self._log))

    def _launch(self) -> None:
        prefix = f"equipoise_{os.getpid()}_{secrets.token_hex(4)}_"
        directory = self._directory = Path(tempfile.mkdtemp(prefix="equipoise-"))
        grace = str(self._exit_timeout + _PATIENCE)
        try:
            (directory / "models").mkdir()
            source = self.repository if self._pinned is None else link_pinned(self._pinned, directory / "pinned")
            verified = verified_copy(source, directory / "verified", self._trust, self._left_out)
            self.models = stage_repository(
                verified, directory / "models", self._engine.configuration, available_cores(), self._settings
            )
            backends = self._engine.link_backends(directory / "backends")
            command = triton_command(
                self._engine, directory / "models", backends, self.ports, prefix, self._exit_timeout, self._address
            )
            guard = [sys.executable, "-I", "-S", str(GUARDIAN), "--grace", grace, "--prefix", prefix]
            guard += ["--drain", str(self._exit_timeout), "--metrics-port", str(self.ports.metrics)]
            guard += ["--metrics-address", reached_at(self._address)]
            self._ended.clear()
            self._log.clear()
            self._crashed = False
            self._loaded.clear()
            self._failed.clear()
            self._died = math.inf
            self._reader = None
            self._guardian = subprocess.Popen(
                [*guard, "--directory", str(directory), "--", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={
                    **triton_environment(os.environ),
                    STOPPING_VARIABLE: str(directory / STOPPING_FILE),
                    **({CLOSED_VARIABLE: str(self._closed)} if self._closed else {}),
                },
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._reader = threading.Thread(target=self._read_log, args=(self._guardian,), daemon=True)
        self._reader.start()

    def _read_log(self, guardian: subprocess.Popen[bytes]) -> None:
        assert guardian.stdout is not None
        with guardian.stdout as log:
            for block in log:
                line = block.decode(errors="replace").rstrip("\n")
                self._log.append(line)
                if loaded := _LOADED.search(line):
                    self._loaded.add(loaded[1])
                elif failed := _FAILED.search(line):
                    self._failed.setdefault(failed[1], line[failed.start() :])
                elif "terminate called" in line:
                    self._died = min(self._died, time.monotonic())
                self._on_log(line)
        self._ended.set()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        assert self._directory is not None
        while not (answers_ready(self.ports.http) and answers_metrics(reached_at(self._address), self.ports.metrics)):
            if self._ended.wait(0.02):
                assert self._guardian is not None
                self._crashed = self._guardian.wait() >= _BY_SIGNAL
                raise StartError(f"Triton ended before it was ready. Its log:\n{self.relevant_log}", self._failed)
            if (now := time.monotonic()) > min(deadline, self._died + _AFTER_DEATH):
                late = sorted(folder.name for folder in (self._directory / "models").iterdir())
                late = [name for name in late if name not in self._loaded]
                why = "a process died" if now <= deadline else f"it did not load within {self._start_timeout:g} s"
                raise StartError(
                    f"Triton does not get ready: {why}; not loaded: {', '.join(late) or 'nothing'}. Its log:\n"
                    f"{self.relevant_log}",
                    {**dict.fromkeys(late, why), **self._failed},
                )


def triton_command(
    engine: Engine,
    models: Path,
    backends: Path,
    ports: Ports,
    shared_memory_prefix: str,
    exit_timeout: int,
    address: str = LOOPBACK,
) -> list[str]:
    """The command line: loopback unless an address is given, nothing guessed, no model control, no cache."""
    configuration = [f"--model-config-name={engine.configuration}"] if engine.configuration else []
    password = secrets.token_hex(16)  # nobody knows it
    return [
        str(engine.binary),
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        *configuration,
        *HARDENING,
        f"--grpc-restricted-protocol={CLOSED}:equipoise={password}",
        f"--http-restricted-api={CLOSED}:equipoise={password}",
        f"--exit-timeout-secs={exit_timeout}",
        f"--grpc-address={address}",
        f"--grpc-port={ports.grpc}",
        f"--http-address={LOOPBACK}",
        f"--http-port={ports.http}",
        f"--metrics-address={address}",
        f"--metrics-port={ports.metrics}",
        # Several models, each with several stubs: a start mostly waits for their Python imports.
        "--model-load-thread-count=16",
        "--pinned-memory-pool-byte-size=0",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHARED_MEMORY_BYTES}",
        *engine.options,
    ]


def triton_environment(outside: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: nothing phones home, fp32 means fp32, and stubs find this Python's packages."""
    libraries = [str(folder) for folder in library_folders()]
    return {
        **{name: value for name, value in outside.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
        "ORT_DISABLE_TELEMETRY": "1",
        "NVIDIA_TF32_OVERRIDE": "0",
        # The stub takes its packages from the first `python3` on PATH.
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), outside.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *filter(None, [outside.get("LD_LIBRARY_PATH")])]),
    }
